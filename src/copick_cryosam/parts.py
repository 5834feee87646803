"""Picks that are parts of one particle: two halves, or a small domain beside the body.

What lies between two picks says something (`pair_evidence`); all look-alikes together say more. Particles that merely
touch do so at any distance, parts of a rigid complex keep theirs: where pairs of such looks lie at one distance far
more often than chance would have it, what speaks for one of them speaks for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from copick_cryosam.detections import Detections
from copick_cryosam.types import FloatArray
from copick_cryosam.unit_vectors import to_unit

__all__ = ["owners"]

# Chosen on simulated tomograms of tuning and fresh kinds, and of pairs of them (pretraining/README.md).
ALIKE, SAME = 0.75, 0.9
"""Quantile of all cosines from which on two picks look alike, and a cosine from which on they do in any case."""
TOLERANCE = 0.1
"""How far the distances of two pairs may differ, of the distance."""
BEYOND = (1.3, 2.0)
"""Distances, in that of a pair, between which look-alikes lie as chance puts them."""
WEIGHT = 2.0
"""Of the logarithm of how often there are such pairs, over how often by chance."""
FEWEST = 3
"""Pairs of one look and distance that say something of each other."""
ALONE = 0.6
"""Least share of the picks in such pairs that are in one of them only: rows and lattices are no pairs."""
DOUBTFUL, JOINED = -2.5, 1.0
"""Log odds under which a pair is not thought of, and over which it is one: two particles taken for one are two lost."""

_COUNTED = 30_000
"""Pairs from which on no further tomogram is counted, and those beyond them that are, drawn at random."""
_COMPARED = 2_000
"""Picks whose cosines are, drawn at random from more."""
_AT_ONCE = 256
"""Pairs judged at once."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of picks of all tomograms, the rows of which are counted through.

    Attributes
    ----------
    rows : shape (P, 2), the surer pick first
    apart : their distance, shape (P,)
    odds : logarithm, of being parts of one particle by what lies between them, shape (P,)
    tomogram : shape (P,)
    """

    rows: NDArray[np.int64]
    apart: FloatArray
    odds: FloatArray
    tomogram: NDArray[np.int64]

    @classmethod
    def of(cls, found: Sequence[Detections]) -> _Pairs:
        starts = np.cumsum([0, *map(len, found)])
        return cls(
            rows=np.concatenate([one.pairs + at for one, at in zip(found, starts, strict=False)]),
            apart=np.concatenate([_distances(one.points.zyx, one.pairs) for one in found]),
            odds=np.concatenate([one.odds for one in found]),
            tomogram=np.repeat(np.arange(len(found)), [len(one.pairs) for one in found]),
        )

    def __getitem__(self, some: NDArray[np.bool_] | slice) -> _Pairs:
        return _Pairs(self.rows[some], self.apart[some], self.odds[some], self.tomogram[some])

    def __len__(self) -> int:
        return len(self.rows)


def owners(found: Sequence[Detections]) -> list[NDArray[np.int64]]:
    """Of each pick the one that it is a part of: its own row where it is a particle, or the surest of the parts.

    Parameters
    ----------
    found : picks of each tomogram, best first; all tomograms have the same voxel spacing

    Returns
    -------
    For each tomogram shape (N,); an owner owns itself.
    """
    if not found:
        return []
    starts = np.cumsum([0, *map(len, found)])
    owner = np.arange(starts[-1])
    pairs = _Pairs.of(found)
    thought_of = pairs[pairs.odds > DOUBTFUL]
    odds = np.maximum(thought_of.odds, _odds_together(thought_of, pairs, found))
    for at in np.argsort(-odds, kind="stable"):
        first, second = thought_of.rows[at]
        if odds[at] > JOINED and owner[first] == first and owner[second] == second:
            owner[second] = first
    # parts of parts
    while (owner[owner] != owner).any():
        owner = owner[owner]
    return [part - at for part, at in zip(np.split(owner, starts[1:-1]), starts, strict=False)]


def _odds_together(asked: _Pairs, pairs: _Pairs, found: Sequence[Detections]) -> FloatArray:
    """Log odds of each pair asked for by all that look like it and lie at its distance; -inf where they say nothing."""
    said = np.full(len(asked), -np.inf)
    if len(asked) == 0:
        return said
    rng = np.random.default_rng(0)
    counted = rng.permutation(len(found))
    enough = np.searchsorted(np.cumsum(np.bincount(pairs.tomogram, minlength=len(found))[counted]), _COUNTED)
    counted = counted[: enough + 1]
    pairs = pairs[np.isin(pairs.tomogram, counted)]
    beyond, apart, share = _beyond(found, counted, BEYOND[1] * float(asked.apart.max()), rng)
    looks = _Looks(to_unit(np.concatenate([one.features for one in found])), rng)
    # how many of those beyond a pair would lie at its distance if their density were the same
    ratio = ((1 + TOLERANCE) ** 3 - (1 - TOLERANCE) ** 3) / (BEYOND[1] ** 3 - BEYOND[0] ** 3) / share
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        distance = some.apart[:, None]
        alike = looks.alike(some.rows, pairs.rows) & (np.abs(pairs.apart - distance) <= TOLERANCE * distance)
        around = looks.alike(some.rows, beyond) & (apart > BEYOND[0] * distance) & (apart <= BEYOND[1] * distance)
        by_chance = ratio * around.sum(axis=1)
        for row, (mine, chance) in enumerate(zip(alike, by_chance, strict=True), start=start):
            if mine.sum() >= FEWEST and _alone(pairs.rows[mine]) >= ALONE:
                often = float(mine.sum() / (chance + 1))
                said[row] = pairs.odds[mine].mean() + WEIGHT * max(np.log(often), 0.0)
    return said


class _Looks:
    """Which picks look alike, by the cosine of their embeddings, unit vectors of shape (N, C)."""

    def __init__(self, units: FloatArray, rng: np.random.Generator) -> None:
        self._units = units
        some = units if len(units) <= _COMPARED else units[rng.choice(len(units), _COMPARED, replace=False)]
        self._least = min(float(np.quantile((some @ some.T)[np.triu_indices(len(some), 1)], ALIKE)), SAME)

    def alike(self, some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether both picks of a pair, (P, 2), look like those of another, (Q, 2), either way round; shape (P, Q)."""
        (a, b), (c, d) = some.T, others.T
        return (self._like(a, c) & self._like(b, d)) | (self._like(a, d) & self._like(b, c))

    def _like(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self._units[rows] @ self._units[columns].T >= self._least)


def _beyond(
    found: Sequence[Detections], counted: NDArray[np.int64], reach: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray, float]:
    """Pairs of picks of some tomograms within reach, their distances, and what share of them these are."""
    starts = np.cumsum([0, *map(len, found)])
    near = [cKDTree(found[at].points.zyx).query_pairs(reach, output_type="ndarray") for at in counted]
    apart = np.concatenate([_distances(found[at].points.zyx, rows) for at, rows in zip(counted, near, strict=True)])
    rows = np.concatenate([rows + starts[at] for at, rows in zip(counted, near, strict=True)]).astype(np.int64)
    some = rng.permutation(len(rows))[:_COUNTED]
    return rows[some], apart[some], len(some) / max(len(rows), 1)


def _distances(points: FloatArray, pairs: NDArray[np.int64]) -> FloatArray:
    return np.asarray(np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1))


def _alone(pairs: NDArray[np.int64]) -> float:
    """Share of the picks that are in one pair only."""
    return float((np.unique(pairs, return_counts=True)[1] == 1).mean())
