"""Walking from plane to plane along one axis, both ways from each prompt (eqs. 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.segmenters.fusing import AxisStack
from copick_cryosam.segmenters.prompting import Axis, Planes, joined, keep, latest
from copick_cryosam.segmenters.slabs import SlabPrompts
from copick_cryosam.segmenters.stopping import follows
from copick_cryosam.types import FloatArray

__all__ = ["Count", "Progress", "walk_axis"]

Progress = Callable[[int, int], None]
"""Called with the walks that have ended and their total: six (±z, ±y, ±x) for each proposal."""

_GROUP_BYTES = 512 * 1024**2


class Count:
    """Ended walks, reported as they end."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, ended: int) -> None:
        self._done += ended
        if self._progress is not None and ended:
            self._progress(self._done, self._total)


def walk_axis(axis: Axis, points: FloatArray, anchors: NDArray[np.int64], reach: int, count: Count) -> AxisStack:
    """Walk both directions of one axis for all proposals, in groups whose cubes fit `_GROUP_BYTES`.

    Parameters
    ----------
    axis : the planes
    points : voxels z, y, x, shape (N, 3)
    anchors : their voxels, at the centres of the proposals' cubes
    reach : planes on each side, at most
    count : told of ended walks
    """
    size = max(1, _GROUP_BYTES // axis.window**3)
    groups = [slice(first, first + size) for first in range(0, len(points), size)]
    stacks = [_Group(axis, points[some], anchors[some], count).walk(reach) for some in groups]
    return AxisStack(
        *(
            np.concatenate([getattr(s, name) for s in stacks])
            for name in ("bits", "area", "area_iou", "planes", "decodes")
        )
    )


class _Gathered:
    """The masks that N proposals have along one axis, each in a cube of its own, and what they add up to."""

    def __init__(self, number: int, axis: Axis) -> None:
        self._axis, self._half = axis.axis, axis.half
        cube = (number, axis.window, axis.window, axis.window)
        self._cubes = torch.zeros(cube, dtype=torch.bool, device=axis.device)
        self._area = torch.zeros(number, dtype=torch.int64, device=axis.device)
        self._area_iou = torch.zeros(number, dtype=torch.float64, device=axis.device)
        self._used, self._decodes = torch.zeros_like(self._area), torch.zeros_like(self._area)

    def decoded(self, who: Tensor) -> None:
        """One prompt more was decoded for each walk of the proposals `who`."""
        self._decodes.index_add_(0, who, torch.ones_like(who))

    def use(self, who: Tensor, offset: Tensor | int, planes: Planes) -> None:
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


@dataclass(frozen=True, eq=False)
class _Walks:
    """N walks that have not ended: whose they are, which way they go, and the last plane that each one used.

    Attributes
    ----------
    who : proposal of each walk, shape (N,)
    sign : 1 or -1, shape (N,)
    missed : planes missed in a row, shape (N,)
    last : that plane
    first_score : predicted IoU of the prompted plane, shape (N,)
    """

    who: Tensor
    sign: Tensor
    missed: Tensor
    last: Planes
    first_score: Tensor

    def __len__(self) -> int:
        return len(self.who)

    def where(self, which: Tensor) -> _Walks:
        """The walks `which`."""
        return _Walks(
            self.who[which],
            self.sign[which],
            self.missed[which],
            keep(self.last, which),
            self.first_score[which],
        )


class _Group:
    """Proposals that walk along one axis in step."""

    def __init__(self, axis: Axis, points: FloatArray, anchors: NDArray[np.int64], count: Count) -> None:
        self._axis, self._count, self._number = axis, count, len(points)
        self._start = torch.as_tensor(anchors[:, axis.axis], device=axis.device)
        self._windows = torch.as_tensor(anchors[:, axis.others] - axis.half, device=axis.device)
        self._clicks = torch.as_tensor(points[:, axis.others], dtype=torch.float32, device=axis.device)
        self._gathered = _Gathered(self._number, axis)

    def walk(self, reach: int) -> AxisStack:
        """Both ways, `reach` planes at most."""
        walks, slab = self._first()
        step = 0
        while step < reach:
            if not len(walks):
                break
            slab = slab or self._next(walks, step + 1)
            # which row of the slab is whose: walks end amid it
            rows = torch.arange(len(walks), device=self._axis.device)
            for planes in slab[: reach - step]:
                step += 1
                walks, rows = self._judge(walks, rows, planes, step)
            slab = []
        self._count.add(len(walks))
        return self._gathered.packed()

    def _first(self) -> tuple[_Walks, list[Planes]]:
        """The walks that begin and have a plane ahead, and the planes that the prompted slab tells of, both ways."""
        everyone, middle = torch.arange(self._number, device=self._axis.device), self._axis.told
        prompts = SlabPrompts(
            planes=self._start,
            directions=torch.ones_like(self._start),
            points=self._clicks,
            windows=self._windows,
            masks=None,
            away=torch.zeros_like(self._start),
        )
        slab = self._axis.decode(prompts)
        self._gathered.decoded(everyone)
        alive = slab[middle].alive
        who, slab = everyone[alive], [keep(planes, alive) for planes in slab]
        self._gathered.use(who, 0, slab[middle])
        self._count.add(2 * (self._number - len(who)))
        sign = torch.cat([torch.ones_like(who), -torch.ones_like(who)])
        last = joined([slab[middle], slab[middle]])
        walks = _Walks(who.repeat(2), sign, torch.zeros_like(sign), last, last.iou)
        within = self._within(walks, 1)
        ahead = [joined([slab[middle + step], slab[middle - step]]) for step in range(1, middle + 1)]
        return self._go_on(walks, within), [keep(planes, within) for planes in ahead]

    def _next(self, walks: _Walks, step: int) -> list[Planes]:
        """The next slab of each walk, whose first plane is `step` steps from the prompt."""
        middle = step + self._axis.told
        prompts = SlabPrompts(
            planes=self._start[walks.who] + middle * walks.sign,
            directions=walks.sign,
            points=walks.last.peaks,
            windows=self._windows[walks.who],
            masks=walks.last.prompts,
            away=self._axis.told + 1 + walks.missed,
        )
        self._gathered.decoded(walks.who)
        return self._axis.decode(prompts)

    def _judge(self, walks: _Walks, rows: Tensor, planes: Planes, step: int) -> tuple[_Walks, Tensor]:
        """Use the planes `step` steps from the prompts or end walks there; those that go on, and their rows."""
        now, last, settings = keep(planes, rows), walks.last, self._axis.settings
        good = now.alive & follows(last.masks, now.masks, now.iou, walks.first_score, self._axis.radius_vox, settings)
        self._gathered.use(walks.who[good], step * walks.sign[good], keep(now, good))
        missed = (walks.missed + 1).masked_fill(good, 0)
        walks = replace(walks, missed=missed, last=latest(last, now, good))
        goes_on = (missed <= settings.missed_planes) & self._within(walks, step + 1)
        return self._go_on(walks, goes_on), rows[goes_on]

    def _within(self, walks: _Walks, step: int) -> Tensor:
        """Whether the volume has a plane `step` steps from the walks' prompts."""
        planes = self._start[walks.who] + step * walks.sign
        return (planes >= 0) & (planes < self._axis.length)

    def _go_on(self, walks: _Walks, which: Tensor) -> _Walks:
        self._count.add(len(walks) - int(which.sum()))
        return walks.where(which)
