"""One-to-one matching of two sets of points within a distance."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from copick_cryosam.types import FloatArray

__all__ = ["assign", "close_pairs", "gains_in_order"]

IntArray = NDArray[np.int64]

# A point exactly at the tolerance counts; rounding of Å coordinates must not push it out.
_ROUNDING = 1e-9


def close_pairs(a: FloatArray, b: FloatArray, tolerance: float | FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs of points within the tolerance (inclusive).

    Parameters
    ----------
    a, b : shapes (N, 3) and (M, 3), in the unit of the tolerance
    tolerance : of all, or of each of b, shape (M,)

    Returns
    -------
    rows, columns, distances : shape (E,), indices into a (ascending) and b, and the distance of each pair
    """
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    near = cKDTree(a).query_ball_tree(cKDTree(b), float(np.max(tolerance)) * (1 + 2 * _ROUNDING))
    rows = np.repeat(np.arange(len(a), dtype=np.int64), [len(one) for one in near])
    columns = np.concatenate([np.sort(np.array(one, dtype=np.int64)) for one in near])
    distances = np.linalg.norm(a[rows] - b[columns], axis=1)
    inside = distances <= np.broadcast_to(tolerance, len(b))[columns] * (1 + _ROUNDING)
    return rows[inside], columns[inside], distances[inside]


def assign(rows: IntArray, columns: IntArray, distances: FloatArray, n: int, m: int) -> IntArray:
    """The edges of a maximum matching of minimum total distance.

    The assignment is solved in each connected component of the bipartite graph, so memory grows with the
    largest crowd of close points and never with N x M.

    Parameters
    ----------
    rows, columns, distances : shape (E,), the edges as `close_pairs` gives them
    n, m : number of points on either side

    Returns
    -------
    int64, shape (K,), ascending indices of the chosen edges
    """
    if len(rows) == 0:
        return np.empty(0, np.int64)
    graph = coo_matrix((np.ones(len(rows)), (rows, columns + n)), shape=(n + m, n + m))
    component = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(component, kind="stable")
    chosen: list[int] = []
    for edges in np.split(order, np.nonzero(np.diff(component[order]))[0] + 1):
        p, row = np.unique(rows[edges], return_inverse=True)
        t, column = np.unique(columns[edges], return_inverse=True)
        # One forbidden pair costs more than all allowed ones together: the number of pairs comes first.
        cost = np.full((len(p), len(t)), (1.0 + distances[edges].max()) * (min(len(p), len(t)) + 1))
        edge = np.full(cost.shape, -1, dtype=np.int64)
        cost[row, column] = distances[edges]
        edge[row, column] = edges
        chosen.extend(int(one) for one in edge[linear_sum_assignment(cost)] if one >= 0)
    return np.sort(np.array(chosen, dtype=np.int64))


def gains_in_order(order: IntArray, rows: IntArray, columns: IntArray) -> NDArray[np.bool_]:
    """Which points, added one by one in `order`, enlarge the maximum matching.

    A point enlarges it if an augmenting path starts there; matched points stay matched. So the number of
    gains among the first k points is the size of the maximum matching of these k.

    Parameters
    ----------
    order : shape (N,), a permutation of the points on the rows' side
    rows, columns : shape (E,), edges with ascending rows
    """
    starts = np.searchsorted(rows, np.arange(len(order) + 1))
    owner: dict[int, int] = {}
    holds: dict[int, int] = {}
    gains = np.zeros(len(order), dtype=bool)
    for point in order.tolist():
        reached_from: dict[int, int] = {}
        queue = deque([point])
        free: int | None = None
        while queue and free is None:
            current = queue.popleft()
            for target in columns[starts[current] : starts[current + 1]].tolist():
                if target in reached_from:
                    continue
                reached_from[target] = current
                if target not in owner:
                    free = target
                    break
                queue.append(owner[target])
        gains[point] = free is not None
        while free is not None:
            taker = reached_from[free]
            given_up = holds.get(taker)
            owner[free], holds[taker] = taker, free
            free = given_up
    return gains
