"""What lies on spheres around points: middle, body, rim and surroundings of a particle."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam.features import DenseFeatures
from copick_cryosam.rotations import even_directions
from copick_cryosam.types import FloatArray, VoxelPoints

REGIONS = (0.4, 0.75, 1.05, 1.45)
"""Radii, in the object's, of the spheres on which a particle is looked at."""
_DIRECTIONS = 32
_AT_ONCE = 1024
"""Points whose features are gathered at once."""


def on_spheres(points: VoxelPoints, radius_vox: FloatArray) -> FloatArray:
    """Places on the spheres of `REGIONS` around points of radii (N,), voxels, shape (N, 4, 32, 3)."""
    directions = even_directions(_DIRECTIONS)
    radii = np.array(REGIONS) * np.asarray(radius_vox)[:, None]
    return np.asarray(points.zyx[:, None, None] + radii[:, :, None, None] * directions)


def read_spheres(
    features: DenseFeatures, points: VoxelPoints, places: FloatArray
) -> tuple[NDArray[np.float32], FloatArray, FloatArray]:
    """Means over each sphere; what lies outside the tomogram is its nearest edge.

    Parameters
    ----------
    points, places : as of `on_spheres`, and what it gives

    Returns
    -------
    Feature, unit length, shape (N, 4, C); foreground, shape (N, 4); and centre probability at the points, shape (N,).

    Raises
    ------
    ValueError
        The features know no foreground and no centres.
    """
    if features.foreground is None or features.centre is None:
        raise ValueError("spheres: expected features with foreground and centre maps, found none")
    cells = nearest_cells(features, places)
    mean = np.empty((*places.shape[:2], len(features.values)), dtype=np.float32)
    for start in range(0, len(cells), _AT_ONCE):
        z, y, x = (torch.from_numpy(cells[start : start + _AT_ONCE, ..., axis]) for axis in range(3))
        mean[start : start + _AT_ONCE] = features.values[:, z, y, x].float().mean(dim=-1).permute(1, 2, 0).cpu().numpy()
    unit = mean / np.maximum(np.linalg.norm(mean, axis=2, keepdims=True), 1e-6)
    foreground = features.foreground[tuple(np.moveaxis(cells, -1, 0))].mean(axis=-1)
    centre = features.centre[tuple(nearest_cells(features, points.zyx).T)]
    return unit, foreground.astype(np.float64), centre.astype(np.float64)


def nearest_cells(features: DenseFeatures, places: FloatArray) -> NDArray[np.int64]:
    """Cells of voxel places (..., 3), those of the edge for places outside."""
    cells = np.round(features.grid.to_cells(VoxelPoints(places.reshape(-1, 3)))).astype(np.int64)
    return np.clip(cells, 0, np.array(features.grid.shape) - 1).reshape(places.shape)
