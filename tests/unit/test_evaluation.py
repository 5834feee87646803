"""Scores of picks and masks, against brute force and by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copick_cryosam.errors import DataError, InputError
from copick_cryosam.evaluation import (
    best_threshold,
    dice,
    exclude_seeds,
    iou,
    localization,
    mean_scores,
    panoptic_quality,
    pool,
)
from copick_cryosam.types import AngstromPoints

# Few distinct coordinates make ties, crowds and points exactly at the tolerance common.
coordinate = st.integers(0, 6).map(float)
points = st.lists(st.tuples(coordinate, coordinate, st.just(0.0)), max_size=5).map(
    lambda rows: AngstromPoints(np.array(rows, dtype=np.float64).reshape(-1, 3))
)
tolerances = st.sampled_from([1.0, 2.0, 2.5])


def at(*xyz: tuple[float, float, float]) -> AngstromPoints:
    return AngstromPoints(np.array(xyz, dtype=np.float64).reshape(-1, 3))


def brute_force(predicted: AngstromPoints, truth: AngstromPoints, tolerance: float) -> tuple[int, float]:
    """Most pairs, then least distance, over every one-to-one assignment."""
    few, many = sorted((predicted.xyz, truth.xyz), key=len)
    best = (0, 0.0)
    for order in permutations(range(len(many)), len(few)):
        distances = np.linalg.norm(few - many[list(order)], axis=1)
        close = distances[distances <= tolerance]
        best = max(best, (len(close), -float(close.sum())))
    return best[0], -best[1]


@settings(max_examples=150, deadline=None)
@given(points, points, tolerances)
def test_matching_is_maximum_then_closest(predicted: AngstromPoints, truth: AngstromPoints, tolerance: float) -> None:
    scores = localization(predicted, None, truth, tolerance)
    hits, total = brute_force(predicted, truth, tolerance)
    assert scores.true_positives == hits
    assert scores.distances.sum() == pytest.approx(total)
    assert len(set(scores.pairs[:, 0])) == len(set(scores.pairs[:, 1])) == hits
    separation = np.linalg.norm(predicted.xyz[scores.pairs[:, 0]] - truth.xyz[scores.pairs[:, 1]], axis=1)
    np.testing.assert_allclose(separation, scores.distances)
    assert scores.true_positives + scores.false_positives == len(predicted)
    assert scores.true_positives + scores.false_negatives == len(truth)


@settings(max_examples=100, deadline=None)
@given(points, points, tolerances, st.data())
def test_curve_is_the_maximum_matching_at_every_threshold(
    predicted: AngstromPoints, truth: AngstromPoints, tolerance: float, data: st.DataObject
) -> None:
    n = len(predicted)
    values = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=n, max_size=n)), dtype=np.float64)
    scores = localization(predicted, values, truth, tolerance)
    curve = scores.curve()
    assert list(curve.thresholds) == sorted(set(values), reverse=True)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall, strict=True):
        above = localization(AngstromPoints(predicted.xyz[values >= threshold]), None, truth, tolerance)
        assert precision == pytest.approx(above.precision)
        assert recall == pytest.approx(above.recall)
    best = best_threshold(scores)
    kept = localization(AngstromPoints(predicted.xyz[values >= best.threshold]), None, truth, tolerance)
    assert best.f_beta == pytest.approx(kept.f1)
    for threshold in [*values, np.inf]:
        other = localization(AngstromPoints(predicted.xyz[values >= threshold]), None, truth, tolerance)
        assert best.f_beta >= other.f1 - 1e-12


@settings(max_examples=100, deadline=None)
@given(points, points, points, tolerances)
def test_leaving_seeds_out_removes_their_hits_and_nothing_else(
    predicted: AngstromPoints, truth: AngstromPoints, seeds: AngstromPoints, tolerance: float
) -> None:
    keep_predicted, keep_truth = exclude_seeds(predicted, truth, seeds, tolerance)
    known = localization(seeds, None, truth, tolerance).pairs[:, 1]
    assert set(np.nonzero(~keep_truth)[0]) == set(known)
    before = localization(predicted, None, truth, tolerance)
    after = localization(
        AngstromPoints(predicted.xyz[keep_predicted]), None, AngstromPoints(truth.xyz[keep_truth]), tolerance
    )
    assert after.true_positives == before.true_positives - len(set(known) & set(before.pairs[:, 1]))
    assert np.count_nonzero(~keep_predicted) <= len(seeds)


def test_second_pick_on_a_particle_is_a_duplicate_and_a_false_positive() -> None:
    scores = localization(at((0, 0, 0), (3, 0, 0), (100, 0, 0)), None, at((1, 0, 0)), 5.0)
    assert (scores.true_positives, scores.false_positives, scores.duplicates) == (1, 2, 1)
    assert scores.pairs.tolist() == [[0, 0]]


def test_more_pairs_come_before_shorter_ones() -> None:
    # The nearest-neighbour pair (pick 1, truth 0) would leave pick 0 without a partner.
    scores = localization(at((0, 0, 0), (5, 0, 0)), None, at((4.9, 0, 0), (10, 0, 0)), 5.0)
    assert scores.pairs.tolist() == [[0, 0], [1, 1]]


def test_tolerance_is_inclusive_and_not_cubed() -> None:
    assert localization(at((0.1, 0, 0)), None, at((0.3, 0, 0)), 0.2).true_positives == 1
    assert localization(at((0, 0, 0)), None, at((10.01, 0, 0)), 10.0).true_positives == 0


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [(0, 0, (1.0, 1.0, 1.0, 1.0)), (0, 2, (0.0, 0.0, 0.0, 0.0)), (2, 0, (0.0, 0.0, 0.0, 0.0))],
)
def test_empty_sides(predicted: int, truth: int, expected: tuple[float, ...]) -> None:
    scores = localization(AngstromPoints(np.zeros((predicted, 3))), np.zeros(predicted), at(*[(9, 9, 9)] * truth), 1.0)
    assert (scores.precision, scores.recall, scores.f1, scores.average_precision) == expected
    assert scores.f_beta() == expected[2]
    assert scores.mean_distance is None


def test_figures_by_hand() -> None:
    predicted = at((0, 0, 0), (50, 0, 0), (100, 0, 3), (200, 0, 0))
    scores = localization(predicted, np.array([0.9, 0.8, 0.7, 0.6]), at((1, 0, 0), (100, 0, 0), (300, 0, 0)), 5.0)
    assert scores.precision == 0.5
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(4 / 7)
    assert scores.f_beta(4.0) == pytest.approx(17 * 2 / (17 * 2 + 16 * 1 + 2))
    assert scores.mean_distance == pytest.approx(2.0)
    assert scores.average_precision == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    best = best_threshold(scores)
    assert (best.threshold, best.f_beta) == (0.7, pytest.approx(2 / 3))


def test_pooled_and_mean_scores() -> None:
    good = localization(at((0, 0, 0)), np.array([0.9]), at((0, 0, 0)), 1.0)
    poor = localization(
        at((0, 0, 0), (9, 0, 0), (20, 0, 0)), np.array([0.8, 0.7, 0.6]), at((20, 0, 0), (40, 0, 0)), 1.0
    )
    nothing = localization(at(), None, at(), 1.0)
    together = pool([good, poor, nothing])
    assert (together.true_positives, together.false_positives, together.false_negatives) == (2, 2, 1)
    assert together.pairs.tolist() == [[0, 0], [3, 1]]
    assert together.average_precision == pytest.approx(1 / 3 + 1 / 3 * 2 / 4)
    means = mean_scores([good, poor, nothing])
    assert means.precision == pytest.approx((1 + 1 / 3) / 2)
    assert means.recall == pytest.approx(0.75)
    assert means.f1 == pytest.approx(2 * (2 / 3) * 0.75 / (2 / 3 + 0.75))
    with pytest.raises(InputError, match="one tolerance"):
        pool([good, localization(at(), None, at(), 2.0)])


def test_a_pick_on_a_seed_without_truth_is_left_out_once() -> None:
    keep_predicted, keep_truth = exclude_seeds(at((0, 0, 0), (1, 0, 0), (50, 0, 0)), at((50, 0, 0)), at((0, 0, 0)), 2.0)
    assert keep_predicted.tolist() == [False, True, True]
    assert keep_truth.tolist() == [True]


def test_many_points_need_no_dense_matrix() -> None:
    lattice = np.stack(np.meshgrid(*[np.arange(28) * 10.0] * 3), axis=-1).reshape(-1, 3)
    scores = localization(AngstromPoints(lattice + 1.0), None, AngstromPoints(lattice), 4.0)
    assert scores.true_positives == len(lattice)
    assert scores.mean_distance == pytest.approx(3**0.5)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="tolerance"):
        localization(at(), None, at(), 0.0)
    with pytest.raises(InputError, match=r"expected shape \(1,\), found \(2,\)"):
        localization(at((0, 0, 0)), np.zeros(2), at(), 1.0)
    with pytest.raises(DataError, match="true positions"):
        localization(at(), None, at((0, np.nan, 0)), 1.0)
    with pytest.raises(DataError, match="scores"):
        localization(at((0, 0, 0)), np.array([np.nan]), at(), 1.0)
    with pytest.raises(InputError, match="expected one per pick"):
        localization(at((0, 0, 0)), None, at(), 1.0).curve()


def test_mask_overlap() -> None:
    a, b = np.zeros((2, 2, 4), dtype=bool), np.zeros((2, 2, 4), dtype=bool)
    a[0, 0, :3] = True
    b[0, 0, 1:] = True
    assert dice(a, b) == pytest.approx(2 / 3)
    assert iou(a, b) == pytest.approx(0.5)
    assert dice(a & False, b & False) == iou(a & False, b & False) == 1.0
    assert dice(a, b & False) == iou(a & False, b) == 0.0
    with pytest.raises(InputError, match="one shape"):
        dice(a, b[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_panoptic_quality_against_brute_force(first: list[int], second: list[int]) -> None:
    predicted, truth = np.array(first).reshape(2, 2, 3), np.array(second).reshape(2, 2, 3)
    overlaps = [
        float(np.sum((predicted == p) & (truth == t)) / np.sum((predicted == p) | (truth == t)))
        for p in set(first) - {0}
        for t in set(second) - {0}
    ]
    hits = [one for one in overlaps if one > 0.5]
    n, m = len(set(first) - {0}), len(set(second) - {0})
    quality = panoptic_quality(predicted, truth)
    assert (quality.true_positives, quality.false_positives, quality.false_negatives) == (
        len(hits),
        n - len(hits),
        m - len(hits),
    )
    assert quality.quality == pytest.approx(2 * sum(hits) / (n + m) if n + m else 1.0)
    assert quality.quality == pytest.approx(quality.segmentation_quality * quality.recognition_quality)
