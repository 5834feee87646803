"""Seeds as a user clicks them, and scores that do not count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam import evaluation
from copick_cryosam.mask_overlap import ratio
from copick_cryosam.types import AngstromPoints, FloatArray, Grid, VoxelPoints

JITTER = 0.15
"""Standard deviation of a click from the true centre on each axis, in radii."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Clicks:
    """Seeds of one kind in the order they are used: which tomogram, shape (N,), and where, shape (N, 3), at 10 Å."""

    tomogram: NDArray[np.int64]
    zyx: FloatArray

    def among(self, tomogram: int, count: int) -> NDArray[np.int64]:
        """Which of the first `count` seeds lie in a tomogram."""
        return np.flatnonzero(self.tomogram[:count] == tomogram)


def draw_clicks(
    truths: Sequence[FloatArray], shape_zyx: tuple[int, ...], radius: float, most: int, rng: np.random.Generator
) -> Clicks:
    """Clicks beside the centres of random particles of all tomograms, none cut off by a face in x and y.

    Fewer clicks with fewer seeds are the first of those with more.
    """
    size, margin = np.array(shape_zyx), np.array([0.5, 1, 1]) * radius
    inner = [truth[((truth > margin) & (truth < size - margin)).all(axis=1)] for truth in truths]
    where = np.concatenate([np.full(len(some), k) for k, some in enumerate(inner)])
    chosen = rng.permutation(len(where))[:most]
    points = np.concatenate(inner).reshape(-1, 3)[chosen]
    points = points + rng.normal(size=points.shape) * JITTER * radius
    return Clicks(tomogram=where[chosen].astype(np.int64), zyx=np.clip(points, 0, size - 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Exam:
    """The true positions of one kind under one condition, to score against without the seeds.

    Attributes
    ----------
    truths, seeds : of each tomogram, Å
    tolerance : Å
    """

    truths: list[AngstromPoints]
    seeds: list[AngstromPoints]
    tolerance: float
    grid: Grid

    def score(
        self, found: Sequence[tuple[VoxelPoints, FloatArray]]
    ) -> tuple[evaluation.LocalizationScores, list[NDArray[np.bool_]]]:
        """Pooled scores of points with scores in each tomogram, and which points of each were not on a seed."""
        runs, kept = [], []
        for (points, scores), truth, seeds in zip(found, self.truths, self.seeds, strict=True):
            at = self.grid.to_angstrom(points)
            keep, left = evaluation.exclude_seeds(at, truth, seeds, self.tolerance)
            runs.append(
                evaluation.localization(
                    AngstromPoints(at.xyz[keep]), scores[keep], AngstromPoints(truth.xyz[left]), self.tolerance
                )
            )
            kept.append(keep)
        return evaluation.pool(runs), kept

    @property
    def particles(self) -> int:
        return sum(map(len, self.truths))

    def f1(self, scores: evaluation.LocalizationScores) -> float:
        """F1 to be expected where no particle is a seed."""
        return float(self._f1(np.array(scores.true_positives), np.array(scores.predicted), scores.truth))

    def best_f1(self, scores: evaluation.LocalizationScores) -> float:
        """The same at the best threshold; 0 without points."""
        if scores.predicted == 0 or scores.scores is None:
            return 0.0
        curve = scores.curve()
        taken = np.searchsorted(np.sort(-scores.scores), -curve.thresholds, side="right")
        return float(self._f1(curve.recall * scores.truth, taken, scores.truth).max())

    def _f1(self, hits: NDArray[np.generic], taken: NDArray[np.generic], left: int) -> FloatArray:
        weighted = np.asarray(hits, dtype=np.float64) * ratio(self.particles, left, empty=True)
        return np.asarray(2 * weighted / (weighted + np.asarray(taken) - np.asarray(hits) + self.particles))
