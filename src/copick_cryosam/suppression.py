"""Greedy suppression by distance: of points that lie too close together only the best stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from copick_cryosam.types import FloatArray


def survivors(points: FloatArray, radius: float) -> NDArray[np.bool_]:
    """Which points have no better survivor strictly closer than `radius`.

    Parameters
    ----------
    points : shape (N, 3), best first; any unit, that of `radius`

    Returns
    -------
    bool, shape (N,)
    """
    alive = np.ones(len(points), dtype=np.bool_)
    if len(points) < 2:
        return alive
    # the tree's own rounding must not decide: ask it for a little more and measure exactly
    pairs = cKDTree(points).query_pairs(radius * (1 + 1e-6), output_type="ndarray")
    close = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) < radius
    worse: dict[int, list[int]] = {}
    for better, other in pairs[close].tolist():
        worse.setdefault(better, []).append(other)
    for index in range(len(points)):
        if alive[index]:
            alive[worse.get(index, [])] = False
    return alive
