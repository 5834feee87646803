"""Summaries and pictures of the curves: means, bins, and every series in a readable SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from copick_cryosam.pretraining.curves import Row
from copick_cryosam.pretraining.figures import label_figure, noise_figure, reliability_figure
from copick_cryosam.pretraining.summaries import (
    SCORES,
    Mean,
    Point,
    compare,
    condition_table,
    curve_table,
    label_curve,
    mean_of,
    noise_curve,
    reliability,
)


def row(f1: float, *, kind: str = "a", condition: str = "reference", seeds: int = 1, polarity: str = "told") -> Row:
    return Row(
        repeat=0,
        condition=condition,
        kind=kind,
        seeds=seeds,
        particles=20,
        left=20 - seeds,
        f1=f1,
        best=f1 + 0.1,
        baseline_f1=0.1,
        baseline_best=0.2,
        polarity=polarity,
    )


def points(at: list[float], level: float = 0.6) -> list[Point]:
    score = Mean(value=level, error=0.05, count=14)
    return [Point(at=one, scores=dict.fromkeys(SCORES, score)) for one in at]


def texts(svg: str) -> str:
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    return " | ".join("".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("text"))


def test_label_picture_has_all_series_and_ticks():
    svg = label_figure(points([1, 2, 5, 10, 20]))
    found = texts(svg)
    for name in ("own threshold", "best threshold", "difference of Gaussians, own threshold", "n = 14", "20"):
        assert name in found
    assert svg.count("FillBetweenPolyCollection") == 2
    # on white, so that it can be read on a dark page
    assert "fill: #ffffff" in svg


def test_noise_picture_has_both_numbers_of_seeds():
    found = texts(noise_figure({1: points([0.02, 0.1, 0.5]), 5: points([0.02, 0.1, 0.5], 0.7)}))
    for name in ("1 seed, own threshold", "5 seeds, best threshold", "difference of Gaussians, best threshold", "0.02"):
        assert name in found


def test_reliability_picture_has_both_numbers_of_seeds():
    rng = np.random.default_rng(0)
    expected = rng.uniform(size=2000)
    curve = reliability(expected, rng.uniform(size=2000) < expected)
    found = texts(reliability_figure({1: curve, 5: curve}))
    for name in ("1 seed", "5 seeds", "within 0.1", "fraction that is true"):
        assert name in found


def test_the_same_numbers_give_the_same_picture():
    assert label_figure(points([1, 5])) == label_figure(points([1, 5]))


def test_calibrated_expectations_lie_on_the_diagonal():
    rng = np.random.default_rng(1)
    expected = rng.uniform(size=20_000)
    curve = reliability(expected, rng.uniform(size=20_000) < expected)
    assert curve.count.sum() == 20_000
    assert curve.enough.all()
    assert curve.deviation < 0.04


def test_overconfident_expectations_are_told():
    rng = np.random.default_rng(2)
    expected = rng.uniform(size=20_000)
    curve = reliability(expected, rng.uniform(size=20_000) < expected**2)
    assert curve.deviation == pytest.approx(0.25, abs=0.03)


def test_bins_with_few_proposals_do_not_count():
    expected = np.concatenate([np.full(100, 0.05), np.full(3, 1.0)])
    curve = reliability(expected, np.concatenate([np.arange(100) < 5, np.zeros(3, dtype=bool)]))
    assert curve.count.tolist() == [100, 3]
    assert curve.deviation == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(reliability(np.zeros(0), np.zeros(0, dtype=bool)).deviation)


def test_means_leave_out_what_was_not_measured():
    mean = mean_of([0.4, 0.6, float("nan")])
    assert (mean.value, mean.count) == (pytest.approx(0.5), 2)
    assert mean.error == pytest.approx(0.1)
    assert str(mean_of([])) == "–"


def test_curves_take_only_their_own_rows():
    rows = [row(0.4), row(0.6, kind="b"), row(0.8, seeds=20), row(0.2, condition="SNR 0.02"), row(0.0, condition="x")]
    label = label_curve(rows, (1, 2, 20))
    assert [(p.at, p.count, p.scores["f1"].value) for p in label] == [(1, 2, pytest.approx(0.5)), (20, 1, 0.8)]
    noise = noise_curve(rows, (0.1, 0.02), 1)
    assert [(p.at, p.count) for p in noise] == [(0.02, 1), (0.1, 2)]
    assert "| 20 | 0.80 ± nan |" in curve_table(label, "seeds")


def test_conditions_are_compared_pair_by_pair():
    from copick_cryosam.pretraining.conditions import Condition

    rows = [
        row(0.2),
        row(0.8, kind="b"),
        row(0.3, condition="x", polarity="dark"),
        row(0.9, kind="b", condition="x", polarity="dark"),
        row(0.0, kind="c", condition="x", polarity="refused"),
    ]
    reference, changed = compare(rows, [Condition(name="x"), Condition(name="not measured")])
    assert reference.condition == "reference"
    assert changed.f1_change.value == pytest.approx(0.1)
    assert changed.f1_change.error == pytest.approx(0.0, abs=1e-12)
    assert "| x (right 2, refused 1) | 0.40 ± 0.26 | +0.10 ± 0.00 |" in condition_table([reference, changed])
