"""A plane segmenter without weights: the bright region under the click.

It serves the tests and shows what the contract asks. It finds compact bright objects on a darker
ground and nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from torch import Tensor

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.segmenters import Decoded

__all__ = ["FakeSegmenter", "load"]

_STEEPNESS = 8.0
_LOGIT_LIMIT = 6.0
_MEMORY = 0.25
_CONTRAST = 0.5
"""Contrast to the ground, in standard deviations of the volume, at which an object is as likely there as not."""


@dataclass(frozen=True, eq=False)
class _Planes:
    """The volume with the axis in front, and the object's radius in voxels."""

    planes: Tensor
    radius: float


class FakeSegmenter:
    """Thresholds the smoothed window halfway between the click's surroundings and the ground.

    The mask is the region connected with the click; logits are the scaled distance to the threshold, into
    which the mask of the plane before is blended.
    """

    name = "fake"
    signature = "fake-1"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> _Planes:
        """Planes across `axis`; nothing is computed before `decode`."""
        return _Planes(volume.to(self.device).movedim(axis, 0), radius_vox)

    def decode(
        self,
        embeddings: _Planes,
        planes: Tensor,
        points: Tensor,
        windows: Tensor,
        window: int,
        mask_prompts: Tensor | None,
    ) -> Decoded:
        """See `copick_cryosam.segmenters.PlaneSegmenter.decode`; `prompt` are the logits themselves."""
        planes, points, windows = (values.to(self.device) for values in (planes, points, windows))
        smooth, inside = _read(embeddings, planes, windows, window)
        grid = torch.arange(window, device=self.device)
        clicks = points - windows
        squared = (grid - clicks[:, :1])[:, :, None] ** 2 + (grid - clicks[:, 1:])[:, None, :] ** 2
        near = (squared <= max(1.0, embeddings.radius / 2) ** 2) & inside
        # A click between voxels or on the plane's rim still has one voxel of its own.
        near |= (squared == squared.masked_fill(~inside, torch.inf).flatten(1).amin(1)[:, None, None]) & inside

        object_level = (smooth * near).flatten(1).sum(1) / near.flatten(1).sum(1)
        ground = _ground(smooth, inside, (window - 1) / 2, embeddings.radius)
        contrast = object_level - ground
        logits = smooth - ((object_level + ground) / 2)[:, None, None]
        logits = _STEEPNESS * logits / contrast.clamp_min(_CONTRAST / 2)[:, None, None]
        logits = logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
        if mask_prompts is not None:
            logits = (1 - _MEMORY) * logits + _MEMORY * mask_prompts.to(self.device)

        region = _under_click((logits > 0) & inside, logits.masked_fill(~near, -torch.inf))
        logits = torch.where(region, logits, -logits.abs() - 0.5)
        presence = torch.sigmoid(_STEEPNESS * (contrast - _CONTRAST))
        sharpness = torch.tanh(logits.abs().flatten(1).mean(1) / 2)
        return Decoded(logits=logits, iou=sharpness * presence, presence=presence, prompt=logits)


def load(settings: SegmenterSettings, device: torch.device) -> FakeSegmenter:
    """The factory that `load_segmenter` calls; it has no settings of its own."""
    return FakeSegmenter(device)


def _read(embeddings: _Planes, planes: Tensor, windows: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Gaussian-smoothed windows, shape (N, window, window), and which of their voxels lie in the plane.

    Beyond the plane its rim is repeated.
    """
    sigma = max(0.5, embeddings.radius / 6)
    margin = math.ceil(2 * sigma)
    steps = torch.arange(-margin, margin + 1, device=windows.device)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    height, width = embeddings.planes.shape[1:]
    offsets = torch.arange(-margin, window + margin, device=windows.device)
    rows, columns = windows[:, :1] + offsets, windows[:, 1:] + offsets
    read = embeddings.planes[
        planes[:, None, None], rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    smooth = torch.nn.functional.conv2d(read[:, None], kernel[None, None, :, None])
    smooth = torch.nn.functional.conv2d(smooth, kernel[None, None, None, :])[:, 0]
    rows, columns = (values[:, margin : margin + window] for values in (rows, columns))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return smooth, inside


def _ground(smooth: Tensor, inside: Tensor, centre: float, radius: float) -> Tensor:
    """Median of the window outside 1.5 radii of its centre, or of all of it where the plane leaves little; (N,)."""
    grid = torch.arange(smooth.shape[-1], device=smooth.device) - centre
    far = inside & ((grid[:, None] ** 2 + grid[None, :] ** 2) > (1.5 * radius) ** 2)
    some = far.flatten(1).sum(1) >= smooth.shape[-1]
    chosen = torch.where(some[:, None, None], far, inside)
    return smooth.masked_fill(~chosen, torch.nan).flatten(1).nanmedian(1).values


def _under_click(masks: Tensor, confidence: Tensor) -> Tensor:
    """The connected region of each mask that holds the most confident voxel near the click; empty if that is out."""
    number, height, width = masks.shape
    # One image of all windows, one below the other with an empty row between: one labelling call.
    image = torch.nn.functional.pad(masks, (0, 0, 0, 1)).reshape(number * (height + 1), width)
    labels = cc3d.connected_components(image.cpu().numpy(), connectivity=4)
    regions = torch.from_numpy(labels.astype(np.int64)).reshape(number, height + 1, width)[:, :height].to(masks.device)
    best = confidence.flatten(1).argmax(1)
    label = regions.flatten(1).gather(1, best[:, None])[:, :, None]
    return (regions == label) & (label > 0)
