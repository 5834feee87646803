"""Prompting the planes across one axis, in batches, and what comes of it: a mask on each plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.segmenters import Decoded, PlaneSegmenter
from copick_cryosam.segmenters.slabs import SlabPrompts, decode_slab, planes_told
from copick_cryosam.segmenters.stopping import centroids

__all__ = ["Axis", "Planes", "half_window", "joined", "keep", "latest"]

_WINDOW_RADII = 2.0


def half_window(radius_vox: float) -> int:
    """Half the edge of a proposal's cube in voxels, two object radii; the edge is twice that plus one.

    Segmenters that resample the window to a fixed number of pixels rely on this ratio.
    """
    return math.ceil(_WINDOW_RADII * radius_vox)


@dataclass(frozen=True, eq=False)
class Planes:
    """One decoded plane for each of N walks.

    Attributes
    ----------
    masks : bool, shape (N, window, window)
    peaks : row and column of the highest logit, voxels of the plane, float32, shape (N, 2)
    iou : predicted, shape (N,)
    prompts : `Decoded.prompt`
    alive : bool, shape (N,), the object is there and its mask not empty
    """

    masks: Tensor
    peaks: Tensor
    iou: Tensor
    prompts: Tensor
    alive: Tensor


def joined(parts: Sequence[Planes]) -> Planes:
    """The planes of several groups of walks, one after the other."""
    return Planes(*(torch.cat(same) for same in zip(*(_values(part) for part in parts), strict=True)))


def keep(planes: Planes, which: Tensor) -> Planes:
    """The planes of the walks `which`, a mask or indices."""
    return Planes(*(values[which.to(values.device)] for values in _values(planes)))


def latest(last: Planes, now: Planes, good: Tensor) -> Planes:
    """The planes just decoded where they are good, the last good ones elsewhere."""
    if bool(good.all()):
        return now
    return Planes(
        *(
            torch.where(good.to(new.device).reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(_values(now), _values(last), strict=True)
        )
    )


def _values(planes: Planes) -> list[Tensor]:
    return [getattr(planes, field.name) for field in fields(planes)]


class Axis:
    """The planes across one axis, ready to be prompted in batches.

    Attributes
    ----------
    told : planes on each side of the prompted one that a decode tells of
    half, window : half the edge of a proposal's cube, and the edge, voxels
    length : planes
    """

    def __init__(
        self,
        segmenter: PlaneSegmenter,
        volume: Tensor,
        axis: int,
        radius_vox: float,
        settings: SegmenterSettings,
        batches: Batches,
        *,
        sure: bool,
    ) -> None:
        self.sure = sure
        self.radius_vox = radius_vox
        self.axis = axis
        self.others = [other for other in range(3) if other != axis]
        self.length = volume.shape[axis]
        self.half = half_window(radius_vox)
        self.window = 2 * self.half + 1
        self.settings = settings
        self.device = volume.device
        self._plane_shape = [volume.shape[other] for other in self.others]
        self._segmenter, self._batches = segmenter, batches
        self._embeddings: Any = segmenter.embed(volume, axis, radius_vox)
        # seeds decide what is looked for: each of their planes is prompted
        self.told = 0 if sure else planes_told(segmenter, self.window)

    def decode(self, prompts: SlabPrompts) -> list[Planes]:
        """The planes of N prompts' slabs, in the order of the walks; logits are dropped batch by batch."""
        parts = list(self._batches.run(len(prompts), lambda some: self._slab(prompts[some])))
        return [joined(planes) for planes in zip(*parts, strict=True)]

    def _slab(self, prompts: SlabPrompts) -> list[Planes]:
        windows = prompts.windows
        offsets = torch.arange(self.window, device=self.device)
        rows, columns = (windows[:, i, None] + offsets for i in (0, 1))
        height, width = self._plane_shape
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        slab = decode_slab(self._segmenter, self._embeddings, prompts, self.window, self.told)
        if prompts.masks is None and self.sure:
            slab[self.told] = replace(slab[self.told], presence=torch.ones_like(slab[self.told].presence))
        return [self._plane(decoded, windows, inside) for decoded in slab]

    def _plane(self, decoded: Decoded, windows: Tensor, inside: Tensor) -> Planes:
        logits = decoded.logits.to(self.device, torch.float32)
        masks = (logits > 0) & inside
        present = decoded.presence.to(self.device, torch.float32) >= self.settings.presence_stop
        return Planes(
            masks=masks,
            peaks=_peaks(logits.masked_fill(~masks, -torch.inf), masks) + windows,
            iou=decoded.iou.to(self.device, torch.float32),
            prompts=decoded.prompt,
            alive=masks.flatten(1).any(1) & present,
        )


def _peaks(logits: Tensor, masks: Tensor) -> Tensor:
    """Row and column of the highest logit of each window (eq. 1, Q), shape (N, 2).

    Low-precision logits saturate; of equal ones the voxel nearest the mask's centroid is taken, since the
    first in memory would drift to the object's rim.
    """
    grid = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.float32)
    row, column = centroids(masks).T[..., None]
    squared = (grid - row)[:, :, None] ** 2 + (grid - column)[:, None, :] ** 2
    highest = logits.flatten(1).amax(1)[:, None, None]
    best = squared.masked_fill(logits < highest, torch.inf).flatten(1).argmin(1)
    width = logits.shape[-1]
    return torch.stack([best // width, best % width], dim=1).to(torch.float32)
