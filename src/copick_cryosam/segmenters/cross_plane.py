"""Cross-plane self-prompting: from points to 3D masks with a segmenter of planes (eqs. 1 and 2).

A point prompts the three orthogonal planes through it. Along each of ±z, ±y, ±x the next plane is
prompted with the mask of the plane before and the point of highest confidence in it, until the object
ends (`stopping.py`). All proposals take the same step at once, so that one decode serves many of them.

Every proposal lives in a cube of voxels centred on its prompt, the same cube for all three axes; it
may hang over the volume's edge. One axis gives one stack of plane masks in the cube; the three stacks
are fused by vote or union.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.segmenters import PlaneSegmenter
from copick_cryosam.segmenters.fusing import AxisStack, CrossPlaneMask, combine
from copick_cryosam.segmenters.stopping import centroids, follows
from copick_cryosam.types import FloatArray, VoxelPoints

__all__ = ["CrossPlaneMask", "Progress", "half_window", "segment"]

Progress = Callable[[int, int], None]
"""Called with the walks that have ended and their total: six (±z, ±y, ±x) for each proposal."""

_GROUP_BYTES = 512 * 1024**2

_WINDOW_RADII = 2.0


def half_window(radius_vox: float) -> int:
    """Half the edge of a proposal's cube in voxels, two object radii; the edge is twice that plus one.

    Segmenters that resample the window to a fixed number of pixels rely on this ratio.
    """
    return math.ceil(_WINDOW_RADII * radius_vox)


def segment(
    volume: Tensor,
    points: VoxelPoints,
    radius_vox: float,
    segmenter: PlaneSegmenter,
    settings: SegmenterSettings,
    progress: Progress | None = None,
    *,
    sure: bool = False,
) -> list[CrossPlaneMask]:
    """Segment the object at each point (CryoSAM section 2.1, eqs. 1 and 2).

    A plane fails if its mask is empty, has a presence below `settings.presence_stop`, or no longer follows
    the object (`stopping.follows`); it is not used. A walk along one direction ends at the first plane that
    fails, or after `settings.missed_planes` more in a row; until then the last good plane prompts the next one
    and is what it is compared with. A walk also ends at the volume's edge and `settings.extent` object radii
    from the prompt, so that an object is at most `settings.extent` diameters long; two diameters, the cube's
    edge, are the most there can be. The presence rule holds for the prompted plane too, unless the points are
    `sure`.

    Parameters
    ----------
    volume : float32, shape (Z, Y, X), on the segmenter's device
        Standardised (mean 0, standard deviation 1), particles brighter than their surroundings.
    points : voxels z, y, x, need not be whole numbers
    radius_vox : radius of the object in voxels
    segmenter : any backend of `copick_cryosam.segmenters`
    settings : stop rules, fusion and batch size
    progress : told of ended walks
    sure : the points are known to lie on the object, as seeds are; proposals may not

    Returns
    -------
    One mask for each point, in their order.

    Raises
    ------
    InputError
        The radius is not positive, or a point lies outside the volume.
    DeviceError
        Memory ran out even after the batch was halved.
    """
    _check(volume, points, radius_vox)
    if len(points) == 0:
        return []
    half = half_window(radius_vox)
    reach = min(half, max(1, math.floor(settings.extent * radius_vox + 0.5)))
    anchors = np.floor(points.zyx + 0.5).astype(np.int64)
    count = _Count(6 * len(points), progress)
    batches = Batches(settings.batch, "prompts", "segmenter.batch")
    with torch.inference_mode():
        stacks = [
            _walk_axis(
                _Axis(segmenter, volume, axis, radius_vox, settings, batches, sure=sure),
                points.zyx,
                anchors,
                reach,
                count,
            )
            for axis in range(3)
        ]
    return [combine(stacks, index, points.zyx[index], anchors[index], half, settings) for index in range(len(points))]


def _check(volume: Tensor, points: VoxelPoints, radius_vox: float) -> None:
    if not (math.isfinite(radius_vox) and radius_vox > 0):
        raise InputError(
            f"radius: expected a positive number of voxels, found {radius_vox}", hint="Set the object's radius"
        )
    voxels = np.floor(points.zyx + 0.5)
    # Written so that a NaN counts as outside.
    outside = ~((voxels >= 0) & (voxels < np.array(volume.shape))).all(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        z, y, x = (round(float(value), 1) for value in points.zyx[first])
        raise InputError(
            f"point {first}: expected inside the volume of {tuple(volume.shape)} voxels z, y, x, found ({z}, {y}, {x})",
            hint="Check the points' voxel spacing and axis order",
        )


class _Count:
    """Ended walks, reported as they end."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, ended: int) -> None:
        self._done += ended
        if self._progress is not None and ended:
            self._progress(self._done, self._total)


@dataclass(frozen=True, eq=False)
class _Planes:
    """One decoded plane for each of N walks."""

    masks: Tensor
    peaks: Tensor
    iou: Tensor
    prompts: Tensor
    alive: Tensor


class _Axis:
    """The planes across one axis, ready to be prompted in batches."""

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

    def decode(self, planes: Tensor, points: Tensor, windows: Tensor, prompts: Tensor | None) -> _Planes:
        """Decode N prompts in batches; logits are dropped batch by batch, masks are kept."""

        def chunk(some: slice) -> _Planes:
            return self._chunk(planes[some], points[some], windows[some], None if prompts is None else prompts[some])

        parts = list(self._batches.run(len(planes), chunk))
        return _Planes(
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("masks", "peaks", "iou", "prompts", "alive"))
        )

    def _chunk(self, planes: Tensor, points: Tensor, windows: Tensor, prompts: Tensor | None) -> _Planes:
        decoded = self._segmenter.decode(self._embeddings, planes, points, windows, self.window, prompts)
        logits = decoded.logits.to(self.device, torch.float32)
        offsets = torch.arange(self.window, device=self.device)
        rows, columns = (windows[:, i, None] + offsets for i in (0, 1))
        height, width = self._plane_shape
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        masks = (logits > 0) & inside
        present = decoded.presence.to(self.device, torch.float32) >= self.settings.presence_stop
        if prompts is None and self.sure:
            present = torch.ones_like(present)
        return _Planes(
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


def _walk_axis(axis: _Axis, points: FloatArray, anchors: NDArray[np.int64], reach: int, count: _Count) -> AxisStack:
    """Walk both directions of one axis for all proposals, in groups whose cubes fit `_GROUP_BYTES`."""
    group = max(1, _GROUP_BYTES // axis.window**3)
    stacks = [_walk_group(axis, points[some], anchors[some], reach, count) for some in _slices(len(points), group)]
    return AxisStack(
        *(
            np.concatenate([getattr(s, name) for s in stacks])
            for name in ("bits", "area", "area_iou", "planes", "decodes")
        )
    )


class _Gathered:
    """The masks that N proposals have along one axis, each in a cube of its own, and what they add up to."""

    def __init__(self, number: int, axis: _Axis) -> None:
        self._axis, self._half = axis.axis, axis.half
        cube = (number, axis.window, axis.window, axis.window)
        self._cubes = torch.zeros(cube, dtype=torch.bool, device=axis.device)
        self._area = torch.zeros(number, dtype=torch.int64, device=axis.device)
        self._area_iou = torch.zeros(number, dtype=torch.float64, device=axis.device)
        self._used, self._decodes = torch.zeros_like(self._area), torch.zeros_like(self._area)

    def decoded(self, who: Tensor) -> None:
        """One plane more was decoded for each walk of the proposals `who`."""
        self._decodes.index_add_(0, who, torch.ones_like(who))

    def use(self, who: Tensor, offset: Tensor | int, planes: _Planes) -> None:
        """Take the planes `offset` steps from the prompt into the cubes of the proposals `who`."""
        self._cubes[who, self._half + offset] = planes.masks
        sizes = planes.masks.flatten(1).sum(1)
        self._area.index_add_(0, who, sizes)
        self._area_iou.index_add_(0, who, sizes * planes.iou.double())
        self._used.index_add_(0, who, torch.ones_like(who))

    def packed(self) -> AxisStack:
        zyx = self._cubes.movedim(1, 1 + self._axis).reshape(len(self._cubes), -1).cpu().numpy()
        sums = (values.cpu().numpy() for values in (self._area, self._area_iou, self._used, self._decodes))
        return AxisStack(np.packbits(zyx, axis=1), *sums)


def _walk_group(axis: _Axis, points: FloatArray, anchors: NDArray[np.int64], reach: int, count: _Count) -> AxisStack:
    number, settings = len(points), axis.settings
    start = torch.as_tensor(anchors[:, axis.axis], device=axis.device)
    windows = torch.as_tensor(anchors[:, axis.others] - axis.half, device=axis.device)
    clicks = torch.as_tensor(points[:, axis.others], dtype=torch.float32, device=axis.device)
    gathered = _Gathered(number, axis)

    first = axis.decode(start, clicks, windows, None)
    first_score = first.iou
    gathered.decoded(torch.arange(number, device=axis.device))
    who = first.alive.nonzero()[:, 0]
    first = _keep(first, first.alive)
    gathered.use(who, 0, first)
    count.add(2 * (number - len(who)))

    # Both directions start from the same plane and walk as one batch.
    sign = torch.cat([torch.ones_like(who), -torch.ones_like(who)])
    last = _keep(first, torch.arange(len(who), device=axis.device).repeat(2))
    who = who.repeat(2)
    missed = torch.zeros_like(who)
    for step in range(1, reach + 1):
        planes = start[who] + step * sign
        within = (planes >= 0) & (planes < axis.length)
        walking = len(who)
        who, sign, missed, planes, last = who[within], sign[within], missed[within], planes[within], _keep(last, within)
        if len(who):
            now = axis.decode(planes, last.peaks, windows[who], last.prompts)
            gathered.decoded(who)
            good = now.alive & follows(last.masks, now.masks, now.iou, first_score[who], axis.radius_vox, settings)
            gathered.use(who[good], step * sign[good], _keep(now, good))
            missed = (missed + 1).masked_fill(good, 0)
            goes_on = missed <= settings.missed_planes
            who, sign, missed, last = who[goes_on], sign[goes_on], missed[goes_on], _latest(last, now, good, goes_on)
        count.add(walking - len(who))
        if not len(who):
            break
    count.add(len(who))
    return gathered.packed()


def _keep(planes: _Planes, which: Tensor) -> _Planes:
    return _Planes(
        masks=planes.masks[which],
        peaks=planes.peaks[which],
        iou=planes.iou[which],
        prompts=planes.prompts[which.to(planes.prompts.device)],
        alive=planes.alive[which],
    )


def _latest(last: _Planes, now: _Planes, good: Tensor, which: Tensor) -> _Planes:
    """Of the walks `which`, the plane just decoded where it is good, the last good one elsewhere."""
    latest = _keep(now, which)
    old = _keep(last, which & ~good)
    if len(old.alive):
        stale = ~good[which]
        for name in ("masks", "peaks", "iou", "prompts", "alive"):
            values = getattr(latest, name)
            values[stale.to(values.device)] = getattr(old, name)
    return latest


def _slices(length: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, length, size)]
