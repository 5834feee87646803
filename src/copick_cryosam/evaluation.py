"""Scores of picks against picks and of masks against masks.

Picks are matched to the truth one to one, so two picks on one particle are one hit and one false
positive. Where a ratio has nothing to count, this holds everywhere in this module: nothing predicted
and nothing true is a perfect score (1); nothing on one side only scores 0. No score is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.assignment import IntArray, assign, close_pairs, gains_in_order
from copick_cryosam.errors import DataError, InputError
from copick_cryosam.mask_overlap import PanopticQuality, dice, iou, panoptic_quality, ratio
from copick_cryosam.types import AngstromPoints, FloatArray

__all__ = [
    "Curve",
    "LocalizationScores",
    "MeanScores",
    "OracleThreshold",
    "PanopticQuality",
    "best_threshold",
    "dice",
    "exclude_seeds",
    "iou",
    "localization",
    "mean_scores",
    "panoptic_quality",
    "pool",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Precision and recall at every distinct score, highest score first; all shape (K,)."""

    thresholds: FloatArray
    precision: FloatArray
    recall: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalizationScores:
    """How N predicted picks agree with M true ones.

    Attributes
    ----------
    tolerance : Å, the largest distance of a match (inclusive)
    predicted, truth : N and M
    pairs : int64, shape (K, 2); rows of (predicted index, truth index)
    distances : Å, shape (K,), of the pairs
    duplicate : bool, shape (N,); unmatched picks within the tolerance of a true one
    scores : float, shape (N,), or None where the picks have no scores
    gains : bool, shape (N,); whether a pick raises the number of hits when picks are taken by falling score.
        The sum over the picks above a threshold is the number of hits at that threshold.
    """

    tolerance: float
    predicted: int
    truth: int
    pairs: IntArray
    distances: FloatArray
    duplicate: NDArray[np.bool_]
    scores: FloatArray | None
    gains: NDArray[np.bool_]

    @property
    def true_positives(self) -> int:
        return len(self.pairs)

    @property
    def false_positives(self) -> int:
        return self.predicted - len(self.pairs)

    @property
    def false_negatives(self) -> int:
        return self.truth - len(self.pairs)

    @property
    def duplicates(self) -> int:
        """False positives that lie on a particle that another pick has already found."""
        return int(np.count_nonzero(self.duplicate))

    @property
    def precision(self) -> float:
        return ratio(self.true_positives, self.predicted, empty=self.truth == 0)

    @property
    def recall(self) -> float:
        return ratio(self.true_positives, self.truth, empty=self.predicted == 0)

    @property
    def f1(self) -> float:
        return self.f_beta(1.0)

    def f_beta(self, beta: float = 4.0) -> float:
        """Weighted harmonic mean of precision and recall; recall counts `beta` times as much."""
        hits = (1 + beta**2) * self.true_positives
        return ratio(hits, hits + beta**2 * self.false_negatives + self.false_positives, empty=True)

    @property
    def mean_distance(self) -> float | None:
        """Mean distance of the pairs in Å; None where nothing matched."""
        return float(self.distances.mean()) if len(self.distances) else None

    @property
    def average_precision(self) -> float | None:
        """Sum of precision times gain in recall over falling scores; None where the picks have no scores."""
        if self.scores is None:
            return None
        if self.predicted == 0 or self.truth == 0:
            return float(self.predicted == self.truth)
        curve = self.curve()
        return float((np.diff(curve.recall, prepend=0.0) * curve.precision).sum())

    def curve(self) -> Curve:
        """Precision and recall over the scores.

        At every threshold the hits are a maximum one-to-one matching of the picks above it.

        Raises
        ------
        InputError
            The picks have no scores.
        """
        if self.scores is None:
            raise InputError("scores: expected one per pick, found none", hint="Give picks that carry scores")
        order = np.argsort(-self.scores, kind="stable")
        ranked = self.scores[order]
        last = np.nonzero(np.append(ranked[1:] != ranked[:-1], True))[0] if len(ranked) else np.empty(0, np.int64)
        hits = np.cumsum(self.gains[order])[last].astype(np.float64)
        recall = hits / self.truth if self.truth else np.zeros(len(last))
        return Curve(thresholds=ranked[last], precision=hits / (last + 1), recall=recall)

    def summary(self) -> dict[str, float | int | None]:
        """The figures by name, for tables and JSON."""
        return {
            "tolerance": self.tolerance,
            "predicted": self.predicted,
            "truth": self.truth,
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
            "duplicates": self.duplicates,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "f4": self.f_beta(4.0),
            "mean_distance": self.mean_distance,
            "average_precision": self.average_precision,
        }


@dataclass(frozen=True, kw_only=True)
class MeanScores:
    """Means over tomograms, and the F1 of the two means (the paper's way to aggregate)."""

    precision: float
    recall: float
    f1: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class OracleThreshold:
    """The threshold that scores best on the data it is scored on: an upper bound, not a result."""

    threshold: float
    precision: float
    recall: float
    f_beta: float
    beta: float


def localization(
    predicted: AngstromPoints, scores: FloatArray | None, truth: AngstromPoints, tolerance: float
) -> LocalizationScores:
    """Match picks to the truth one to one and count.

    As many pairs as possible, and among all such matchings the one of the smallest total distance.

    Parameters
    ----------
    predicted, truth : Å, shapes (N, 3) and (M, 3)
    scores : shape (N,), higher is better; None where the picks have none
    tolerance : Å, inclusive

    Raises
    ------
    InputError
        The tolerance is not a positive number, or there is not one score per pick.
    DataError
        A position or score is not finite.
    """
    _check(predicted, scores, truth, tolerance)
    rows, columns, distances = close_pairs(predicted.xyz, truth.xyz, tolerance)
    chosen = assign(rows, columns, distances, len(predicted), len(truth))
    duplicate = np.zeros(len(predicted), dtype=bool)
    duplicate[rows] = True
    duplicate[rows[chosen]] = False
    # No picks need no scores: a run without picks must not take the average precision from the others.
    values = np.empty(0) if scores is None and len(predicted) == 0 else scores
    order = np.arange(len(predicted)) if values is None else np.argsort(-np.asarray(values), kind="stable")
    return LocalizationScores(
        tolerance=float(tolerance),
        predicted=len(predicted),
        truth=len(truth),
        pairs=np.stack([rows[chosen], columns[chosen]], axis=1),
        distances=distances[chosen],
        duplicate=duplicate,
        scores=None if values is None else np.array(values, dtype=np.float64),
        gains=gains_in_order(order, rows, columns),
    )


def exclude_seeds(
    predicted: AngstromPoints, truth: AngstromPoints, seeds: AngstromPoints, tolerance: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which picks and which true positions remain when the seeds are left out of both sides.

    A seed takes out the true position it is matched to, and the pick matched to that position. A seed
    on no true position takes out the unmatched pick on it. Everything is matched one to one, so a second
    pick on a seed remains, and the other hits stay hits.

    Returns
    -------
    keep_predicted, keep_truth : bool, shapes (N,) and (M,)
    """
    keep_predicted = np.ones(len(predicted), dtype=bool)
    keep_truth = np.ones(len(truth), dtype=bool)
    known = localization(seeds, None, truth, tolerance).pairs
    keep_truth[known[:, 1]] = False
    found = localization(predicted, None, truth, tolerance).pairs
    keep_predicted[found[~keep_truth[found[:, 1]], 0]] = False
    stray_seeds = np.setdiff1d(np.arange(len(seeds)), known[:, 0])
    stray_picks = np.setdiff1d(np.arange(len(predicted)), found[:, 0])
    stray = localization(
        AngstromPoints(predicted.xyz[stray_picks]), None, AngstromPoints(seeds.xyz[stray_seeds]), tolerance
    ).pairs
    keep_predicted[stray_picks[stray[:, 0]]] = False
    return keep_predicted, keep_truth


def pool(runs: Sequence[LocalizationScores]) -> LocalizationScores:
    """The scores of all runs counted together; indices refer to the picks of the runs laid end to end.

    Raises
    ------
    InputError
        There are no runs, or their tolerances differ.
    """
    if len({one.tolerance for one in runs}) != 1:
        found = sorted({one.tolerance for one in runs})
        raise InputError(f"runs to pool: expected one tolerance, found {found}", hint="Score all runs alike")
    starts = np.cumsum([[0, 0]] + [[one.predicted, one.truth] for one in runs], axis=0)
    scored = [one.scores for one in runs if one.scores is not None]
    return LocalizationScores(
        tolerance=runs[0].tolerance,
        predicted=int(starts[-1, 0]),
        truth=int(starts[-1, 1]),
        pairs=np.concatenate([one.pairs + start for one, start in zip(runs, starts[:-1], strict=True)]),
        distances=np.concatenate([one.distances for one in runs]),
        duplicate=np.concatenate([one.duplicate for one in runs]),
        scores=np.concatenate(scored) if len(scored) == len(runs) else None,
        gains=np.concatenate([one.gains for one in runs]),
    )


def mean_scores(runs: Sequence[LocalizationScores]) -> MeanScores:
    """Mean precision and mean recall over tomograms.

    Tomograms without picks and without truth enter neither mean; those without truth do not enter the
    mean recall. Where nothing remains, the pooled value stands in.
    """
    pooled = pool(runs)
    precisions = [one.precision for one in runs if one.predicted or one.truth]
    recalls = [one.recall for one in runs if one.truth]
    precision = float(np.mean(precisions)) if precisions else pooled.precision
    recall = float(np.mean(recalls)) if recalls else pooled.recall
    f1 = ratio(2 * precision * recall, precision + recall, empty=False)
    return MeanScores(precision=precision, recall=recall, f1=f1, runs=len(runs))


def best_threshold(scores: LocalizationScores, beta: float = 1.0) -> OracleThreshold:
    """The oracle threshold: picks with ``score >= threshold`` reach the best F-beta on this very data.

    Infinite where keeping no pick is best. Of equal thresholds the highest is taken.

    Raises
    ------
    InputError
        The picks have no scores.
    """
    curve = scores.curve()
    none = float(scores.truth == 0)
    best = OracleThreshold(threshold=float("inf"), precision=none, recall=none, f_beta=none, beta=beta)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall, strict=True):
        value = ratio((1 + beta**2) * precision * recall, beta**2 * precision + recall, empty=False)
        if value > best.f_beta:
            best = OracleThreshold(
                threshold=float(threshold), precision=float(precision), recall=float(recall), f_beta=value, beta=beta
            )
    return best


def _check(predicted: AngstromPoints, scores: FloatArray | None, truth: AngstromPoints, tolerance: float) -> None:
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance: expected a positive number of Å, found {tolerance}", hint="Try the radius")
    for name, points in (("predicted positions", predicted), ("true positions", truth)):
        if not np.isfinite(points.xyz).all():
            raise DataError(f"{name}: expected finite numbers, found NaN or infinity", hint="Repair the picks")
    if scores is not None and np.shape(scores) != (len(predicted),):
        expected, found = len(predicted), np.shape(scores)
        raise InputError(f"scores: expected shape ({expected},), found {found}", hint="Give one score per pick")
    if scores is not None and not np.isfinite(scores).all():
        raise DataError("scores: expected finite numbers, found NaN or infinity", hint="Repair the picks")
