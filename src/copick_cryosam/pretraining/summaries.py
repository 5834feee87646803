"""What rows of `curves` say together: means, paired differences and reliability, as numbers and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.pretraining.conditions import CONDITIONS, REFERENCE, Condition, noise_conditions
from copick_cryosam.pretraining.curves import Expectation, Plan, Row
from copick_cryosam.types import FloatArray

BINS = 10
ENOUGH = 50
"""Proposals that a bin must hold for its deviation to count."""
SCORES = ("f1", "best", "baseline_f1", "baseline_best")


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over kinds and data sets, its standard error, and how many there were; NaN and 0 without any."""

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}" if self.count else "–"


def mean_of(values: Sequence[float] | FloatArray) -> Mean:
    """The mean of what is not NaN; the error of a single value is unknown."""
    found = np.array([v for v in values if np.isfinite(v)])
    if len(found) == 0:
        return Mean(value=float("nan"), error=float("nan"), count=0)
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else float("nan")
    return Mean(value=float(found.mean()), error=float(error), count=len(found))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One abscissa of a curve: the scores over all kinds and data sets."""

    at: float
    scores: dict[str, Mean]

    @property
    def count(self) -> int:
        return self.scores["f1"].count


def point_of(at: float, rows: Sequence[Row]) -> Point:
    """The scores of some rows."""
    return Point(at=at, scores={name: mean_of([getattr(row, name) for row in rows]) for name in SCORES})


def label_curve(rows: Sequence[Row], counts: Sequence[int]) -> list[Point]:
    """Scores under the reference condition over the number of seeds, as far as any kind had enough particles."""
    points = [point_of(n, [r for r in rows if r.condition == REFERENCE.name and r.seeds == n]) for n in counts]
    return [point for point in points if point.count]


def noise_curve(rows: Sequence[Row], snrs: Sequence[float], seeds: int) -> list[Point]:
    """Scores over the signal-to-noise ratio, with one number of seeds."""
    points = [
        point_of(one.snr, [r for r in rows if r.condition == one.name and r.seeds == seeds])
        for one in noise_conditions(sorted(snrs))
    ]
    return [point for point in points if point.count]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One seed under a condition, and the paired differences to the reference on the same specimens."""

    condition: str
    f1: Mean
    best: Mean
    f1_change: Mean
    best_change: Mean
    polarities: dict[str, int]


def compare(rows: Sequence[Row], conditions: Sequence[Condition] = CONDITIONS) -> list[Comparison]:
    """The reference and every condition that was measured, with one seed."""
    by_condition: dict[str, dict[tuple[int, str], Row]] = {}
    for row in rows:
        if row.seeds == 1:
            by_condition.setdefault(row.condition, {})[row.repeat, row.kind] = row
    reference = by_condition.get(REFERENCE.name, {})
    found = []
    for name in (REFERENCE.name, *(one.name for one in conditions)):
        some = by_condition.get(name, {})
        pairs = [(row, reference[key]) for key, row in some.items() if key in reference]
        told = [row.polarity for row in some.values()]
        found.append(
            Comparison(
                condition=name,
                f1=mean_of([row.f1 for row in some.values()]),
                best=mean_of([row.best for row in some.values()]),
                f1_change=mean_of([a.f1 - b.f1 for a, b in pairs]),
                best_change=mean_of([a.best - b.best for a, b in pairs]),
                polarities={what: told.count(what) for what in sorted(set(told))},
            )
        )
    return [one for one in found if one.f1.count]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """Expected precision against the fraction that is true, in bins that hold proposals; all shape (B,)."""

    expected: FloatArray
    true: FloatArray
    count: NDArray[np.int64]

    @property
    def enough(self) -> NDArray[np.bool_]:
        return self.count >= ENOUGH

    @property
    def deviation(self) -> float:
        """The largest deviation of the bins with enough proposals; NaN where there is none."""
        off = np.abs(self.expected - self.true)[self.enough]
        return float(off.max()) if len(off) else float("nan")


def reliability(expected: FloatArray, true: NDArray[np.bool_]) -> Reliability:
    """Bins of equal width from 0 to 1.

    Parameters
    ----------
    expected : precision of each proposal, shape (N,), 0 to 1
    true : whether it is a particle, shape (N,)
    """
    which = np.clip((expected * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(which, minlength=BINS)
    held = count > 0
    sums = [np.bincount(which, weights=values, minlength=BINS)[held] for values in (expected, true)]
    return Reliability(expected=sums[0] / count[held], true=sums[1] / count[held], count=count[held])


def pooled_reliability(expectations: Sequence[Expectation], plan: Plan, seeds: int) -> Reliability:
    """Over all data sets, kinds and signal-to-noise ratios, with one number of seeds."""
    names = {one.name for one in noise_conditions(plan.snrs)}
    some = [one for one in expectations if one.seeds == seeds and one.condition in names]
    return reliability(
        np.concatenate([np.zeros(0), *(one.expected for one in some)]),
        np.concatenate([np.zeros(0, dtype=bool), *(one.true for one in some)]),
    )


def threshold_loss(rows: Sequence[Row], seeds: int, plan: Plan) -> Mean:
    """F1 that the program's own threshold loses against the best one, over all signal-to-noise ratios."""
    names = {one.name for one in noise_conditions(plan.snrs)}
    return mean_of([row.best - row.f1 for row in rows if row.seeds == seeds and row.condition in names])


def curve_table(points: Sequence[Point], what: str) -> str:
    """A Markdown table of a curve, mean ± standard error."""
    lines = [
        f"| {what} | F1 | F1 at the best threshold | difference of Gaussians | same, best threshold "
        "| kinds x data sets |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        cells = " | ".join(str(point.scores[name]) for name in SCORES)
        lines.append(f"| {point.at:g} | {cells} | {point.count} |")
    return "\n".join(lines)


def condition_table(comparisons: Sequence[Comparison]) -> str:
    """A Markdown table of the conditions, differences paired."""
    lines = ["| condition | F1 | change | F1 at the best threshold | change |", "|---|---|---|---|---|"]
    for one in comparisons:
        reference = one.condition == REFERENCE.name
        changes = ["" if reference else _signed(change) for change in (one.f1_change, one.best_change)]
        name = one.condition if set(one.polarities) <= {"told"} else f"{one.condition} ({_polarities(one.polarities)})"
        lines.append(f"| {name} | {one.f1} | {changes[0]} | {one.best} | {changes[1]} |")
    return "\n".join(lines)


def reliability_table(curve: Reliability) -> str:
    """A Markdown table of the bins."""
    lines = ["| expected precision | true | proposals |", "|---|---|---|"]
    lines += [f"| {e:.2f} | {t:.2f} | {n} |" for e, t, n in zip(curve.expected, curve.true, curve.count, strict=True)]
    return "\n".join(lines)


def _signed(mean: Mean) -> str:
    return f"{mean.value:+.2f} ± {mean.error:.2f}" if mean.count else "–"


def _polarities(found: dict[str, int]) -> str:
    names = {"dark": "right", "light": "wrong", "refused": "refused"}
    return ", ".join(f"{names[what]} {count}" for what, count in found.items())
