"""What speaks for two peaks being parts of one particle: one row of numbers for each pair of neighbours.

Between two parts of a particle there is particle, and some of what the encoder takes for a centre; two particles that
touch have a gap in both. Nothing here is of one kind of particle or another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.features import DenseFeatures
from copick_cryosam.types import FloatArray, VoxelPoints
from copick_cryosam.unit_vectors import to_unit

REACH = 1.5
"""Sums of two radii; what lies further apart are no parts of one particle."""
_PLACES = 13
"""Along the line from one to the other."""
_LEAST_CENTRE = 0.02


def neighbours(points: VoxelPoints, radius_vox: FloatArray) -> NDArray[np.int64]:
    """Rows of all pairs within reach of each other, the first before the second, shape (P, 2)."""
    if len(points) < 2:
        return np.empty((0, 2), dtype=np.int64)
    tree = cKDTree(points.zyx)
    pairs = np.asarray(tree.query_pairs(2 * REACH * float(radius_vox.max()), output_type="ndarray"), dtype=np.int64)
    apart = np.linalg.norm(points.zyx[pairs[:, 0]] - points.zyx[pairs[:, 1]], axis=1)
    near = pairs[apart < REACH * radius_vox[pairs].sum(axis=1)]
    return np.asarray(near[np.lexsort(near.T[::-1])])


def pair_evidence(
    features: DenseFeatures,
    points: VoxelPoints,
    radius_vox: FloatArray,
    embeddings: NDArray[np.float32],
    pairs: NDArray[np.int64],
) -> FloatArray:
    """Rows (P, 5) for pairs of one tomogram's peaks.

    The columns: logarithm of the radii's ratio, mean foreground along the line from one to the other, least centre
    probability on it in that of the lower end, cosine of the embeddings, logarithm of the radius in the net's voxels.

    Parameters
    ----------
    points, radius_vox : of the peaks, shapes (N, 3) and (N,)
    embeddings : mean of each peak, shape (N, C)
    pairs : rows of two peaks each, shape (P, 2)

    Raises
    ------
    ValueError
        The features know no foreground and no centres.
    """
    if features.foreground is None or features.centre is None:
        raise ValueError("pairs: expected features with foreground and centre maps, found none")
    first, second = pairs.T
    cells = features.grid.to_cells(points)
    steps = np.linspace(0, 1, _PLACES)[:, None, None]
    lines = (cells[first] + (cells[second] - cells[first]) * steps).transpose(2, 0, 1)
    foreground, centre = (
        ndimage.map_coordinates(values, lines, order=1, mode="nearest")
        for values in (features.foreground, features.centre)
    )
    ends = np.maximum(np.minimum(centre[0], centre[-1]), _LEAST_CENTRE)
    units = to_unit(embeddings.astype(np.float64))
    return np.column_stack(
        [
            np.abs(np.log(radius_vox[first] / radius_vox[second])),
            foreground.mean(axis=0),
            centre.min(axis=0) / ends,
            (units[first] * units[second]).sum(axis=1),
            np.log(features.grid.net_voxels(np.sqrt(radius_vox[first] * radius_vox[second]))),
        ]
    ).astype(np.float64)
