"""Peaks of what the encoder takes for centres: one for each particle, with its size and how it looks.

EmbedNet was trained to put a Gaussian of 0.35 object radii at every particle's centre, whatever its kind; what it gives
is a little wider. So the size of such a peak tells the size of the particle, and a normalised Laplacian of a Gaussian
over a ladder of radii (scale-space blobs, Lindeberg 1998) finds place and radius together; its height is 1 where the
net is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, DenseFeatures, Features
from copick_cryosam.types import FloatArray, VoxelPoints

__all__ = ["NET_SPACING", "RADII", "Peaks", "diameters", "embeddings", "peaks_of"]

RADII = np.geomspace(43.0, 180.0, 7)
"""Å at the net's voxel spacing; the ladder of radii that are looked for."""
NET_SPACING = 10.0

# The numbers below were chosen on simulated tomograms of tuning and fresh kinds (validate_discovery --tuning, --fresh).
_HEAT, _LEAST = 0.38, 0.75
"""Width of the peaks that the net gives: object radii, and at least so many cells."""
_FLOOR = 0.05
"""Response under which a peak is none."""
_DIP = 0.6
"""Two peaks are one particle unless the centre map falls below this part of the lower one between them."""
_BLUR = 0.5
"""Cells; smoothing of the map in which that is looked at."""
_CORE = 0.7
"""Object radii around a peak over which its embedding is averaged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Peaks:
    """Where particles may be, one peak for each, highest first.

    Attributes
    ----------
    cells : of the features' grid, shape (N, 3)
    height : 0 to 1, shape (N,)
    radius_vox : of the particles that they would be, shape (N,)
    """

    cells: NDArray[np.int64]
    height: FloatArray
    radius_vox: FloatArray

    def __getitem__(self, some: NDArray[np.int64] | NDArray[np.bool_]) -> Peaks:
        return Peaks(cells=self.cells[some], height=self.height[some], radius_vox=self.radius_vox[some])


def peaks_of(features: Features, voxel_spacing: float | None = None) -> tuple[DenseFeatures, Peaks]:
    """The peaks of the centre map, and the features as those that have one.

    Parameters
    ----------
    voxel_spacing : Å; None: the net's own 10 Å

    Raises
    ------
    InputError
        The encoder recognises no particles without a seed.
    """
    if not isinstance(features, DenseFeatures) or features.centre is None or features.foreground is None:
        raise InputError(
            "encoder: expected one that recognises particles without a seed, found none of its centres",
            hint="Use --preset embedded, whose encoder is embednet",
        )
    ladder = RADII / (voxel_spacing or NET_SPACING)
    cells, height, radius = _peaks(features.centre, ladder, features.grid)
    kept = _one_each(cells, radius, features.centre, features.grid)
    return features, Peaks(cells=cells, height=height, radius_vox=radius)[kept]


def _peaks(
    centre: NDArray[np.float32], ladder: FloatArray, grid: CellGrid
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Maxima over place and radius, best first: cells (N, 3), height and radius in voxels."""
    # A Gaussian of width s gives the Laplacian's highest response, 0.5577, at the width sqrt(2 / 3) s.
    best = np.sqrt(2 / 3)
    stack: list[NDArray[np.float32]] = []
    for radius in ladder:
        widths = [best * max(_HEAT * radius / stride, _LEAST) for stride in grid.stride]
        response = ndimage.gaussian_laplace(centre, widths, mode="nearest", output=np.float32)
        stack.append(response * np.float32(-float(np.mean(np.square(widths))) / 0.5577))
    found, heights, radii = [], [], []
    for step, response in enumerate(stack):
        # one level at a time: the maxima over three levels need no four-dimensional filter
        around = np.maximum.reduce(stack[max(step - 1, 0) : step + 2])
        highest = ndimage.maximum_filter(around, size=3, mode="constant", cval=-1.0)
        cells = np.argwhere((response == highest) & (response > _FLOOR))
        found.append(cells)
        heights.append(response[tuple(cells.T)])
        radii.append(np.full(len(cells), ladder[step]))
    cells = np.concatenate(found)
    height = np.clip(np.concatenate(heights).astype(np.float64), 0, 1)
    order = np.argsort(-height, kind="stable")
    return cells[order], height[order], np.concatenate(radii)[order]


def _one_each(
    cells: NDArray[np.int64], radius: FloatArray, centre: NDArray[np.float32], grid: CellGrid
) -> NDArray[np.int64]:
    """Indices of peaks that belong to particles of their own; peaks are given best first.

    A peak falls to a better one within the larger radius of the two, and within the sum of their radii where the
    centre map does not dip between them: particles that touch have a dip, halves of one have none.
    """
    if len(cells) == 0:
        return np.empty(0, dtype=np.int64)
    points = grid.to_voxels(cells).zyx
    blurred = ndimage.gaussian_filter(centre, _BLUR, mode="nearest")
    tree = cKDTree(points)
    alive = np.ones(len(points), dtype=np.bool_)
    kept = []
    along = np.linspace(0, 1, 9)[:, None, None]
    for index in range(len(points)):
        if not alive[index]:
            continue
        kept.append(index)
        near = np.array(tree.query_ball_point(points[index], radius[index] + radius.max()), dtype=np.int64)
        near = near[(near > index) & alive[near]]
        distance = np.linalg.norm(points[near] - points[index], axis=1)
        close = distance < np.maximum(radius[near], radius[index])
        lines = (cells[index] + (cells[near] - cells[index]) * along).transpose(2, 0, 1)
        profile = ndimage.map_coordinates(blurred, lines, order=1, mode="nearest")
        joined = profile.min(axis=0) > _DIP * np.minimum(profile[0], profile[-1])
        alive[near[close | (joined & (distance < radius[near] + radius[index]))]] = False
    return np.array(kept, dtype=np.int64)


def diameters(points: VoxelPoints, radius: FloatArray, foreground: NDArray[np.float32], grid: CellGrid) -> FloatArray:
    """Diameter in voxels of a sphere of the foreground's volume; each cell of it counts for the nearest peak only."""
    if len(points) == 0:
        return np.empty(0)
    cells = np.argwhere(foreground > 0.5)
    distance, owner = cKDTree(points.zyx).query(grid.to_voxels(cells).zyx)
    owner = np.asarray(owner)[distance <= 1.6 * radius[owner]]
    volume = np.bincount(owner, minlength=len(points)) * float(np.prod(grid.stride))
    return cast(FloatArray, (6 * volume / np.pi) ** (1 / 3))


def embeddings(cells: NDArray[np.int64], radius: FloatArray, features: DenseFeatures) -> NDArray[np.float32]:
    """Mean embedding over the cells within `_CORE` radii, weighted by their foreground; shape (N, C)."""
    assert features.foreground is not None
    result = np.zeros((len(cells), len(features.values)), dtype=np.float32)
    for row, (cell, size) in enumerate(zip(cells, radius, strict=True)):
        reach = [max(_CORE * size / stride, _LEAST) for stride in features.grid.stride]
        low = [max(0, int(np.ceil(c - r))) for c, r in zip(cell, reach, strict=True)]
        high = [min(n, int(c + r) + 1) for c, r, n in zip(cell, reach, features.grid.shape, strict=True)]
        axes = [(np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, cell, reach, strict=True)]
        inside = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 <= 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        weights = np.maximum(features.foreground[box], 1e-6) * inside
        values = features.values[(slice(None), *box)].float().cpu().numpy()
        result[row] = (values * weights).sum(axis=(1, 2, 3)) / weights.sum()
    return result
