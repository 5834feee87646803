"""Calibration without labels: from the scores of proposals to their expected precision.

Peaks of similarity after suppression are a mixture of particles like the seeds and of everything else:
background, and look-alikes. The seeds themselves say where the particles' scores lie; the rest of the
tomogram says how the others are distributed. A mixture of three normal distributions is fitted, one for
particles and two for the others, with the seeds as prior; the share of the first at a score is the
expected precision there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from copick_cryosam.errors import DataError
from copick_cryosam.fisher import fisher_z
from copick_cryosam.types import FloatArray, Proposals

MIN_PROPOSALS = 8
"""With fewer there is nothing to fit; all are kept."""

# The five numbers below were chosen on simulated tomograms of kinds that training saw (validate --tuning).
_SEED_BONUS = 0.05
"""How much better a seed scores against its own query than another particle does, Fisher z."""
_PRIOR_SPREAD = 0.05
"""Standard deviation of the particles' mean around that expectation, Fisher z."""
_WIDTH = 0.08
"""Usual standard deviation of the particles' scores, Fisher z."""
_WIDTH_WEIGHT = 10.0
"""How many particles that usual width is worth."""
_SEPARATION = 2.5
"""How many of the particles' standard deviations the others' means stay below theirs."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What the scores of one tomogram's proposals mean.

    Attributes
    ----------
    expected_precision : shape (N,), falls with the rank; NaN where there were too few to fit
    threshold : the lowest score that is kept
    kept : how many of the best proposals are kept
    """

    expected_precision: FloatArray
    threshold: float
    kept: int


def calibrate(proposals: Proposals, seed_scores: FloatArray, min_precision: float | None) -> Calibration:
    """Expected precision of every proposal, and where to stop.

    Parameters
    ----------
    proposals : best first
    seed_scores : scores of the seeds against the query, shape (M,), M >= 1
    min_precision : keep those of at least this expected precision, 0 all; None: maximise the expected F1

    Raises
    ------
    DataError
        A precision over 0 is asked for and there are too few proposals to tell it.
    """
    scores = proposals.score
    if len(scores) < MIN_PROPOSALS:
        if min_precision and len(scores):
            raise DataError(
                f"min_precision: expected at least {MIN_PROPOSALS} proposals to calibrate, found {len(scores)}",
                hint="Leave --min-precision out, or limit the picks by --max-picks",
            )
        return Calibration(expected_precision=np.full(len(scores), np.nan), threshold=-np.inf, kept=len(scores))
    return stop_at(mixture_precision(scores, seed_scores), scores, min_precision)


def stop_at(
    precision: FloatArray, scores: FloatArray, min_precision: float | None, stop_by: FloatArray | None = None
) -> Calibration:
    """Where to stop, once the expected precision is known; all fall with the rank. See `calibrate`.

    Parameters
    ----------
    stop_by : probabilities of which the expected F1 is maximised; None: the expected precision
    """
    stop_by = precision if stop_by is None else stop_by
    kept = expected_f1_optimum(stop_by) if min_precision is None else int((precision >= min_precision).sum())
    threshold = float(scores[kept - 1]) if kept else float("inf")
    return Calibration(expected_precision=precision, threshold=threshold, kept=kept)


def expected_f1_optimum(precision: FloatArray) -> int:
    """How many of the best maximise the expected F1, 2 Σ_kept p / (kept + Σ_all p); `precision` falls."""
    if len(precision) == 0 or precision[0] <= 0:
        return 0
    hits = np.cumsum(precision)
    return int(np.argmax(2 * hits / (np.arange(1, len(precision) + 1) + hits[-1]))) + 1


def mixture_precision(scores: FloatArray, seed_scores: FloatArray) -> FloatArray:
    """Share of the particles' component at each score; made to rise with the score.

    Expectation maximisation with a normal prior on the particles' mean and a pseudo-count on their width.
    The others' components may overlap with it but never lie above it.
    """
    z = fisher_z(scores)
    expected = float(fisher_z(seed_scores).mean()) - _SEED_BONUS / len(seed_scores)
    # a seed can score above everything else only because it is the seed; never expect more than the best
    expected = min(expected, float(np.quantile(z, 1 - 2 / len(z))))
    means = np.array([float(np.median(z)), (float(np.median(z)) + expected) / 2, expected])
    widths = np.array([max(float(z.std()), 0.05), _WIDTH, _WIDTH])
    shares = np.array([0.7, 0.25, 0.05])
    for _ in range(300):
        member = _memberships(z, shares, means, widths)
        totals = member.sum(axis=0)
        before = means.copy()
        means = (member * z[:, None]).sum(axis=0) / np.maximum(totals, 1e-9)
        weight = widths[2] ** 2 / _PRIOR_SPREAD**2
        means[2] = (totals[2] * means[2] + weight * expected) / (totals[2] + weight)
        means[:2] = np.minimum(means[:2], means[2] - _SEPARATION * widths[2])
        squares = (member * (z[:, None] - means) ** 2).sum(axis=0)
        widths = np.sqrt((squares + _WIDTH_WEIGHT * _WIDTH**2) / (totals + _WIDTH_WEIGHT))
        shares = np.maximum(totals, 0.5) / np.maximum(totals, 0.5).sum()
        if np.abs(means - before).max() < 1e-6:
            break
    order = np.argsort(z, kind="stable")
    precision = np.empty(len(z))
    precision[order] = np.maximum.accumulate(_memberships(z, shares, means, widths)[order, 2])
    return precision


def _memberships(z: FloatArray, shares: FloatArray, means: FloatArray, widths: FloatArray) -> FloatArray:
    """Probability of each component at each score, shape (N, 3)."""
    logs = np.log(shares) - np.log(widths) - (z[:, None] - means) ** 2 / (2 * widths**2)
    logs -= logs.max(axis=1, keepdims=True)
    parts = np.exp(logs)
    return np.asarray(parts / parts.sum(axis=1, keepdims=True))
