"""Particles that touch are parted: one component that is too large for one particle, into its lumps.

Not in the paper, where a component is a particle. Spheres of touching particles overlap as soon as a net draws them
a little too large, and a crowded tomogram would be one component. A lump is where a voxel lies deep inside: the
maxima of the distance to the component's surface, at least one label radius apart.
"""

from __future__ import annotations

import itertools
import math

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.suppression import survivors
from copick_cryosam.types import FloatArray

__all__ = ["split"]

_TILE = 96
"""Voxels; depths are computed in tiles, as the component of a crowded tomogram may fill it."""
_SMOOTHING = 1.0
"""Voxels; labels are rough, and every bump or hole would make maxima."""
_SHALLOW = 0.5
"""Maxima less deep than this share of the deepest are bumps."""


def split(
    mask: NDArray[np.bool_], radius: float, above: float | None
) -> list[tuple[NDArray[np.bool_], tuple[int, int, int]]]:
    """The particles of a component: each voxel goes to the nearest lump.

    There are at most as many as spheres of `radius` have its volume.

    Parameters
    ----------
    mask : cropped to the component, shape (d, h, w)
    radius : of a particle's label, voxels
    above : components of more than this many spheres' volume are split; None: none are

    Returns
    -------
    For each its mask, cropped, and where that begins in `mask`.
    """
    spheres = np.count_nonzero(mask) / (4 / 3 * math.pi * radius**3)
    whole = [(mask, (0, 0, 0))]
    if above is None or spheres <= above:
        return whole
    lumps = _lumps(mask, radius)[: max(1, round(spheres))]
    if len(lumps) < 2:
        return whole
    tree = cKDTree(lumps)
    owners = np.zeros(mask.shape, dtype=np.uint32)
    for z, plane in enumerate(mask):  # plane by plane: coordinates take more memory than voxels
        y, x = np.nonzero(plane)
        owners[z, y, x] = 1 + tree.query(np.column_stack([np.full(len(y), z), y, x]))[1]
    boxes = cc3d.statistics(owners)["bounding_boxes"]
    return [
        (owners[box] == number, (box[0].start, box[1].start, box[2].start))
        for number, box in enumerate(boxes)
        if number > 0
    ]


def _lumps(mask: NDArray[np.bool_], radius: float) -> FloatArray:
    """Maxima of the depth, the deepest first; shape (N, 3)."""
    reach = math.ceil(2 * radius)  # depths are exact up to here
    halo = reach + 2 * math.ceil(4 * _SMOOTHING) + 1
    padded = np.pad(mask, halo)
    points, depths = [], []
    for corner in itertools.product(*(range(0, size, _TILE) for size in mask.shape)):
        tile = padded[tuple(slice(start, start + _TILE + 2 * halo) for start in corner)]
        smooth = ndimage.gaussian_filter(tile.astype(np.float32), _SMOOTHING) > 0.5
        if not smooth.any():
            continue
        depth = np.minimum(ndimage.distance_transform_edt(smooth), reach).astype(np.float32)
        depth = ndimage.gaussian_filter(depth, _SMOOTHING)
        peak = (depth == ndimage.maximum_filter(depth, 3)) & smooth
        inner = tuple(slice(halo, size - halo) for size in tile.shape)
        places = np.argwhere(peak[inner])
        points.append(places + np.array(corner))
        depths.append(depth[inner][tuple(places.T)])
    if not points:
        return np.zeros((0, 3))
    depth = np.concatenate(depths)
    order = np.argsort(-depth, kind="stable")
    order = order[depth[order] >= _SHALLOW * depth.max()]
    found: FloatArray = np.concatenate(points)[order].astype(np.float64)
    kept: FloatArray = found[survivors(found, radius)]
    return kept
