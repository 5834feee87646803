"""What encoders return: features on a coarse grid that knows where its cells lie in the tomogram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.types import FloatArray, Instance, Slices3, VoxelPoints

__all__ = ["CellGrid", "DenseFeatures", "EmbeddingStore", "Features", "cell_weights", "interpolation"]

_SLAB = 1 << 19
"""Cells turned into float32 at once."""


@dataclass(frozen=True)
class CellGrid:
    """A coarse grid over a tomogram: cell i is centred on voxel ``(i + 0.5) * stride - 0.5``.

    Half-pixel centres on every axis (align_corners=False). Strides are voxels per cell in
    z, y, x and need not be whole numbers. `extent` is the tomogram's shape in voxels, where known.
    """

    shape: tuple[int, int, int]
    stride: tuple[float, float, float]
    extent: tuple[int, int, int] | None = None

    def to_voxels(self, cells: FloatArray | NDArray[np.int64]) -> VoxelPoints:
        """Voxel positions of (fractional) cell indices, shape (N, 3)."""
        return VoxelPoints((np.asarray(cells, dtype=np.float64) + 0.5) * np.array(self.stride) - 0.5)

    def to_cells(self, points: VoxelPoints) -> FloatArray:
        """Fractional cell indices of voxel positions; the inverse of `to_voxels`."""
        return np.asarray((points.zyx + 0.5) / np.array(self.stride) - 0.5, dtype=np.float64)

    def clamp(self, points: VoxelPoints) -> VoxelPoints:
        """The points moved to the nearest voxel of the tomogram: the centre of a last cell may lie beyond it."""
        if self.extent is None:
            return points
        return VoxelPoints(np.clip(points.zyx, 0, np.array(self.extent) - 1))

    def net_voxels(self, length_vox: float | FloatArray) -> FloatArray:
        """Lengths of the tomogram in voxels of EmbedNet, of which a cell has two on each axis."""
        return np.asarray(2 * np.asarray(length_vox) / float(np.mean(self.stride)), dtype=np.float64)

    def coarser(self, factor: int) -> CellGrid:
        """The grid after average pooling by `factor`; incomplete last cells are kept."""
        a, b, c = (-(-n // factor) for n in self.shape)
        z, y, x = (s * factor for s in self.stride)
        return CellGrid((a, b, c), (z, y, x), self.extent)


class Features(Protocol):
    """Features of one tomogram."""

    grid: CellGrid
    centre: NDArray[np.float32] | None
    """Probability that a cell is the centre of a particle of any kind, shape `grid.shape`; None where the
    encoder cannot tell."""
    foreground: NDArray[np.float32] | None
    """Probability that a cell belongs to a particle of any kind; None where the encoder cannot tell."""

    def pool(self, instances: Sequence[Instance]) -> NDArray[np.float32]:
        """Query: the mean feature over all voxels of all instances (eq. 4), shape (C,)."""
        ...

    def similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarity of every cell with `query` (eq. 6), shape `grid.shape`, -1 to 1."""
        ...

    def similarity_at(self, query: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """The same at some cells only; cells are flat indices into `grid.shape`."""
        ...

    def pooled(self, factor: int) -> Features:
        """The same features averaged over blocks of `factor` cells (eq. 5)."""
        ...


class EmbeddingStore(Protocol):
    """Where the features of one tomogram may lie, so that it need not be encoded again."""

    def load(self, polarity: str) -> Features | None:
        """The features of the tomogram seen with this polarity, as its encoder gave them; None where there are none."""
        ...

    def keep(self, polarity: str, features: Features) -> None:
        """Told of features that were computed, before anything changes them."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseFeatures:
    """Features held whole, (C, z, y, x) at the resolution of `grid`, any float type, on any device."""

    values: Tensor
    grid: CellGrid
    centre: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None

    def pool(self, instances: Sequence[Instance]) -> NDArray[np.float32]:
        """See `Features.pool`.

        Interpolation is linear, so the mean of interpolated features is a weighted sum of cells: the mask
        goes through the adjoint of the interpolation, and no feature is upsampled.
        """
        total = torch.zeros(self.values.shape[0], dtype=torch.float64)
        count = 0
        for one in instances:
            if one.size == 0:
                continue
            box, weights = cell_weights(one, self.grid)
            part = self.values[(slice(None), *box)].float().cpu()
            total += torch.einsum("cijk,ijk->c", part, weights).double()
            count += one.size
        if count == 0:
            raise ValueError("pool: expected at least one voxel in the masks, found none")
        return np.asarray(total / count, dtype=np.float32)

    def similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Features.similarity`."""
        result = np.empty(self.grid.shape, dtype=np.float32)
        unit = self._unit(query)
        for part in self._slabs():
            result[part] = _cosine(self.values[:, part], unit).cpu().numpy()
        return result

    def similarity_at(self, query: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Features.similarity_at`."""
        unit = self._unit(query)
        flat = self.values.reshape(len(self.values), -1)
        index = torch.from_numpy(cells).to(flat.device)
        parts = [
            _cosine(flat[:, index[start : start + _SLAB]], unit).cpu().numpy() for start in range(0, len(cells), _SLAB)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def pooled(self, factor: int) -> DenseFeatures:
        """See `Features.pooled`; blocks that hang over the edge average what they hold."""
        if factor == 1:
            return self
        grid = self.grid.coarser(factor)
        slabs = []
        for start in range(0, self.grid.shape[0], factor):
            block = self.values[None, :, start : start + factor].float()
            kernel = [min(factor, n) for n in block.shape[2:]]
            slabs.append(F.avg_pool3d(block, kernel, ceil_mode=True)[0].to(self.values.dtype))
        return DenseFeatures(values=torch.cat(slabs, dim=1), grid=grid)

    def _unit(self, query: NDArray[np.float32]) -> Tensor:
        return F.normalize(torch.from_numpy(query).float().to(self.values.device), dim=0)

    def _slabs(self) -> Iterator[slice]:
        depth = max(1, _SLAB // (self.grid.shape[1] * self.grid.shape[2]))
        for start in range(0, self.grid.shape[0], depth):
            yield slice(start, start + depth)


def _cosine(values: Tensor, unit: Tensor) -> Tensor:
    values = values.float()
    lengths = torch.linalg.vector_norm(values, dim=0).clamp(min=1e-6)
    cosine: Tensor = torch.einsum("c...,c->...", values, unit) / lengths
    return cosine


def cell_weights(instance: Instance, grid: CellGrid) -> tuple[Slices3, Tensor]:
    """How much every cell counts in the sum of the interpolated features over an instance's voxels.

    The adjoint of trilinear interpolation, applied to the mask.

    Returns
    -------
    The box of cells that count, and their weights in it: float32, on the CPU, summing to the mask's voxels.
    """
    parts = [
        interpolation(origin, length, stride, cells)
        for origin, length, stride, cells in zip(
            instance.origin_zyx, instance.mask.shape, grid.stride, grid.shape, strict=True
        )
    ]
    mask = torch.from_numpy(instance.mask.astype(np.float32))
    weights = torch.einsum("zyx,za,yb,xc->abc", mask, *(matrix for _, matrix in parts))
    z, y, x = (slice(first, first + matrix.shape[1]) for first, matrix in parts)
    return (z, y, x), weights


def interpolation(origin: int, length: int, stride: float, cells: int) -> tuple[int, Tensor]:
    """Linear interpolation of `length` voxels from `origin` on: first cell used, weights (length, cells used).

    Half-pixel centres, clamped at the borders; `stride` is voxels per cell, of which there are `cells`.
    """
    position = ((np.arange(origin, origin + length) + 0.5) / stride - 0.5).clip(0, cells - 1)
    low = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    part = position - low
    first, last = int(low[0]), int(min(low[-1] + 1, cells - 1))
    matrix = np.zeros((length, last - first + 1), dtype=np.float32)
    matrix[np.arange(length), low - first] = 1 - part
    high = np.minimum(low + 1, cells - 1)
    matrix[np.arange(length), high - first] += part
    return first, torch.from_numpy(matrix)
