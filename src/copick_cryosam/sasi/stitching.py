"""A volume through a net that sees one window at a time: half-overlapping windows, averaged where they overlap.

Windows of edge W lie at a stride of W/2 along every axis, over the volume mirrored a little beyond its faces, so
that every voxel lies at least W/4 from the border of one of them. Where windows overlap, the middle of a window
counts more than its border (choice; the paper averages). Windows are worked on layer by layer along z; after each
layer W/2 planes are final and handed on, so that the maps of all classes never exist for the whole volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.types import Progress, Volume

__all__ = ["Cover", "cover", "stitch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Cover:
    """How windows cover one axis.

    Attributes
    ----------
    starts : of the windows, in the mirrored axis
    source : the voxel of the axis that each voxel of the mirrored axis shows
    own : where the axis itself lies in the mirrored one
    weights : of the voxels of one window; shape (W,)
    total : of the weights at every voxel of the mirrored axis
    """

    starts: range
    source: NDArray[np.int64]
    own: slice
    weights: Tensor
    total: Tensor


def cover(size: int, edge: int, *, centred: bool) -> Cover:
    """Windows of `edge` voxels, an even number, at a stride of half of it over `size` voxels.

    Parameters
    ----------
    centred : weights fall linearly from the window's middle to its border, where they are not 0; else all are 1
    """
    if edge < 2 or edge % 2:
        raise ValueError(f"edge: expected an even number of voxels, found {edge}")
    stride = edge // 2
    count = -(-size // stride)
    length = stride * (count + 1)
    before = (length - size) // 2
    steps = torch.arange(edge, dtype=torch.float32)
    weights = torch.minimum(steps + 0.5, edge - steps - 0.5) / stride if centred else torch.ones(edge)
    total = torch.zeros(length)
    starts = range(0, stride * count, stride)
    for start in starts:
        total[start : start + edge] += weights
    return Cover(
        starts=starts,
        source=np.pad(np.arange(size), (before, length - size - before), mode="reflect"),
        own=slice(before, before + size),
        weights=weights,
        total=total,
    )


def stitch(
    volume: Volume,
    predict: Callable[[Tensor], Tensor],
    channels: int,
    edge: int,
    batches: Batches,
    device: torch.device,
    *,
    centred: bool = True,
    progress: Progress | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """The net's maps of a volume, slab by slab; the slabs cover the volume once, from the first plane to the last.

    At any time W planes of `channels` float32 maps are kept, and W planes of the volume are read.

    Parameters
    ----------
    volume : shape (Z, Y, X)
    predict : from windows, float32, shape (B, 1, W, W, W), to maps, shape (B, channels, W, W, W)
    edge : W, even
    batches : how many windows go into one call; the maps do not depend on it
    centred : see `cover`
    progress : told of the windows done

    Yields
    ------
    The planes along z, and their maps: float32, shape (channels, planes, Y, X), on `device`.

    Raises
    ------
    DeviceError
        Memory ran out, see `Batches`.
    """
    z, y, x = (cover(size, edge, centred=centred) for size in volume.shape)
    stride = edge // 2
    weight = (z.weights[:, None, None] * y.weights[:, None] * x.weights).to(device)
    plane = (y.total[y.own, None] * x.total[x.own]).to(device)
    places = list(itertools.product(y.starts, x.starts))
    summed = torch.zeros((channels, edge, len(y.source), len(x.source)), device=device)
    for layer, start in enumerate(z.starts):
        slab = _read(volume, z.source[start : start + edge], y.source, x.source).to(device)
        done = 0
        for maps in batches.run(len(places), partial(_predicted, predict, slab, places, edge)):
            for one in maps:
                row, column = places[done]
                summed[:, :, row : row + edge, column : column + edge].addcmul_(one, weight)
                done += 1
            if progress is not None:
                progress("windows", layer * len(places) + done, len(z.starts) * len(places))
        final = edge if start == z.starts[-1] else stride
        planes = range(max(start, z.own.start), min(start + final, z.own.stop))
        if planes:
            inner = slice(planes.start - start, planes.stop - start)
            total = z.total[planes.start : planes.stop, None, None].to(device) * plane
            yield (
                slice(planes.start - z.own.start, planes.stop - z.own.start),
                summed[:, inner, y.own, x.own] / total,
            )
        summed[:, :stride] = summed[:, stride:].clone()
        summed[:, stride:] = 0


def _read(volume: Volume, z: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64]) -> Tensor:
    """The mirrored planes `z`; each plane of the volume is read once."""
    first = int(z.min())
    read = volume[first : int(z.max()) + 1, :, :]
    return torch.from_numpy(np.asarray(read[np.ix_(z - first, y, x)], dtype=np.float32))


def _predicted(
    predict: Callable[[Tensor], Tensor], slab: Tensor, places: list[tuple[int, int]], edge: int, some: slice
) -> Tensor:
    windows = [slab[None, :, row : row + edge, column : column + edge] for row, column in places[some]]
    return predict(torch.stack(windows))
