"""What encoders return: features on a coarse grid that knows where its cells lie in the tomogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.types import FloatArray, Instance, VoxelPoints

__all__ = ["CellGrid", "Features"]


@dataclass(frozen=True)
class CellGrid:
    """A coarse grid over a tomogram: cell i is centred on voxel ``(i + 0.5) * stride - 0.5``.

    Half-pixel centres on every axis (align_corners=False). Strides are voxels per cell in
    z, y, x and need not be whole numbers.
    """

    shape: tuple[int, int, int]
    stride: tuple[float, float, float]

    def to_voxels(self, cells: FloatArray) -> VoxelPoints:
        """Voxel positions of (fractional) cell indices, shape (N, 3)."""
        return VoxelPoints((np.asarray(cells, dtype=np.float64) + 0.5) * np.array(self.stride) - 0.5)

    def to_cells(self, points: VoxelPoints) -> FloatArray:
        """Fractional cell indices of voxel positions; the inverse of `to_voxels`."""
        return (points.zyx + 0.5) / np.array(self.stride) - 0.5

    def coarser(self, factor: int) -> CellGrid:
        """The grid after average pooling by `factor` (incomplete last cells are kept)."""
        a, b, c = (-(-n // factor) for n in self.shape)
        z, y, x = (s * factor for s in self.stride)
        return CellGrid((a, b, c), (z, y, x))


class Features(Protocol):
    """Features of one tomogram."""

    grid: CellGrid
    foreground: NDArray[np.float32] | None
    """Probability that a cell belongs to any particle, shape `grid.shape`; None where an encoder cannot tell."""

    def pool(self, instances: Sequence[Instance]) -> NDArray[np.float32]:
        """Query: the mean feature over all voxels of all instances (eq. 4), shape (C,).

        The mask is pushed through the adjoint of the interpolation, so no feature is upsampled.
        """
        ...

    def similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarity of every cell with `query` (eq. 6), shape `grid.shape`, -1 to 1."""
        ...

    def pooled(self, factor: int) -> Features:
        """The same features averaged over blocks of `factor` cells (eq. 5)."""
        ...

    def tensor(self) -> Tensor:
        """The features themselves, shape (C, *grid.shape), float16 or float32."""
        ...
