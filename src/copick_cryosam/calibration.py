"""Calibration without labels: from the scores of proposals to their expected precision.

Similarity peaks after suppression are a mixture of particles like the query and of everything else. A
mixture of two normal distributions is fitted to them, one for each; the share of the upper one at a
score is the expected precision there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from copick_cryosam.types import FloatArray, Proposals

MIN_PROPOSALS = 8
"""With fewer there is nothing to fit; all are kept."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What the scores of one tomogram's proposals mean.

    Attributes
    ----------
    expected_precision : shape (N,), falls with the rank
    threshold : the lowest score that is kept
    kept : how many of the best proposals are kept
    """

    expected_precision: FloatArray
    threshold: float
    kept: int


def calibrate(proposals: Proposals, min_precision: float | None) -> Calibration:
    """Expected precision of every proposal, and where to stop.

    Parameters
    ----------
    proposals : best first
    min_precision : keep those of at least this expected precision; None: maximise the expected F1
    """
    scores = proposals.score
    if len(scores) < MIN_PROPOSALS:
        return Calibration(expected_precision=np.full(len(scores), np.nan), threshold=-np.inf, kept=len(scores))
    precision = mixture_precision(scores)
    kept = expected_f1_optimum(precision) if min_precision is None else int((precision >= min_precision).sum())
    threshold = float(scores[kept - 1]) if kept else float("inf")
    return Calibration(expected_precision=precision, threshold=threshold, kept=kept)


def expected_f1_optimum(precision: FloatArray) -> int:
    """How many of the best maximise the expected F1, 2 Σ_kept p / (kept + Σ_all p); `precision` falls."""
    if len(precision) == 0 or precision[0] <= 0:
        return 0
    hits = np.cumsum(precision)
    return int(np.argmax(2 * hits / (np.arange(1, len(precision) + 1) + hits[-1]))) + 1


def mixture_precision(scores: FloatArray) -> FloatArray:
    """Share of the upper of two normal components at each score; made to fall with the score.

    Expectation maximisation. It starts from the widest gap in the sense of Otsu (two classes of least
    variance). Scores are compared on a logit scale, on which both components are closer to normal.
    """
    values = np.log(np.clip(scores, 1e-4, 1 - 1e-4)) - np.log1p(-np.clip(scores, 1e-4, 1 - 1e-4))
    order = np.argsort(values)
    ranked = values[order]
    split = _otsu_split(ranked)
    upper = np.zeros(len(ranked))
    upper[split:] = 1
    for _ in range(200):
        share = upper.mean()
        if share in (0.0, 1.0):
            break
        low, high = _moments(ranked, 1 - upper), _moments(ranked, upper)
        # the classes change places where one is much wider; equal widths at the outer sides forbid that
        spread = max(high[1], 0.25 * low[1])
        a = np.log(1 - share) + norm.logpdf(ranked, *low)
        b = np.log(share) + norm.logpdf(ranked, high[0], spread)
        updated = 1 / (1 + np.exp(np.clip(a - b, -60, 60)))
        updated[ranked <= low[0]] = np.minimum(updated[ranked <= low[0]], 0.5 * share)
        updated[ranked >= high[0]] = np.maximum(updated[ranked >= high[0]], updated[np.searchsorted(ranked, high[0])])
        if np.abs(updated - upper).max() < 1e-5:
            break
        upper = updated
    precision = np.empty(len(scores))
    precision[order] = np.maximum.accumulate(upper)
    return precision


def _moments(values: FloatArray, weights: FloatArray) -> tuple[float, float]:
    total = max(float(weights.sum()), 1e-9)
    mean = float((values * weights).sum() / total)
    return mean, max(float(np.sqrt((weights * (values - mean) ** 2).sum() / total)), 0.05)


def _otsu_split(ranked: FloatArray) -> int:
    """First index of the upper class that minimises the variance within both classes."""
    n = np.arange(1, len(ranked))
    sums = np.cumsum(ranked)[:-1]
    total = ranked.sum()
    between = n * (len(ranked) - n) * (sums / n - (total - sums) / (len(ranked) - n)) ** 2
    return int(np.argmax(between)) + 1
