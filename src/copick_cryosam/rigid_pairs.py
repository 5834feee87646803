"""Two halves of one particle that were each taken for one: look-alikes that lie in pairs, always at the same distance.

A complex of two equal rings, or of two chaperonins side by side, has two centres that nothing parts from two particles
that touch, as long as one looks at one of them. All together tell: particles that merely touch do so at any distance
and have other neighbours as near, halves of a rigid complex keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from copick_cryosam.types import FloatArray

__all__ = ["rigid_pairs"]

# Chosen on simulated tomograms of tuning and fresh kinds (validate_discovery --tuning, --fresh).
REACH = 3.0
"""Radii; halves further apart are two particles."""
TOLERANCE = 0.08
"""How far a pair's distance may be off the usual one, of that distance."""
ALONE = 1.3
"""Usual distances within which half of one particle has no other look-alike than its partner."""
SHARE = 0.4
"""Least share of all look-alikes that are in such pairs; spheres packed at random stay under 0.35."""
ALIKE = 0.6
"""Least share of such pairs among all look-alikes that have no other one as near."""
FEWEST = 4
"""Pairs that there must be."""


def rigid_pairs(points: Sequence[FloatArray], radius: float) -> list[NDArray[np.int64]]:
    """Pairs that are one particle each, if those of a kind are pairs at all.

    Parameters
    ----------
    points : picks of one kind in each tomogram, shape (N, 3), any unit
    radius : of a pick, the same unit

    Returns
    -------
    For each tomogram the rows of its pairs, shape (P, 2); none where the kind does not come in pairs.
    """
    nothing = [np.empty((0, 2), dtype=np.int64) for _ in points]
    close = [_closest(one, REACH * radius) for one in points]
    distances = np.concatenate([distance for _, distance, _ in close] or [np.empty(0)])
    if len(distances) < FEWEST:
        return nothing
    usual = _usual(distances)
    rigid = [(np.abs(distance - usual) <= TOLERANCE * usual, second > ALONE * usual) for _, distance, second in close]
    alone = sum(int(on_their_own.sum()) for _, on_their_own in rigid)
    sure = sum(int((fits & on_their_own).sum()) for fits, on_their_own in rigid)
    if sure < max(FEWEST, ALIKE * alone, SHARE * sum(map(len, points)) / 2):
        return nothing
    return [pairs[fits] for (pairs, _, _), (fits, _) in zip(close, rigid, strict=True)]


def _closest(points: FloatArray, reach: float) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Points that are each other's nearest: rows, their distance, and how near to either the next one lies."""
    if len(points) < 2:
        return np.empty((0, 2), dtype=np.int64), np.empty(0), np.empty(0)
    distance, index = (np.asarray(values) for values in cKDTree(points).query(points, k=3))
    nearest = index[:, 1]
    mutual = np.flatnonzero((nearest[nearest] == np.arange(len(points))) & (distance[:, 1] <= reach))
    first = mutual[mutual < nearest[mutual]]
    pairs = np.stack([first, nearest[first]], axis=1).astype(np.int64)
    # where there are two points only, the third lies at infinity
    return pairs, distance[first, 1], distance[pairs, 2].min(axis=1)


def _usual(distances: FloatArray) -> float:
    """The distance that most pairs have, within the tolerance: the middle of those."""
    near = np.abs(distances[:, None] - distances) <= TOLERANCE * distances
    return float(np.median(distances[near[:, near.sum(axis=0).argmax()]]))
