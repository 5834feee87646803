"""From scores to expected precision: what must hold whatever the fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.calibration import MIN_PROPOSALS, calibrate, expected_f1_optimum, stop_at
from copick_cryosam.errors import DataError
from copick_cryosam.types import Proposals, VoxelPoints


def proposals(scores) -> Proposals:
    scores = np.sort(np.asarray(scores, dtype=float))[::-1].copy()
    return Proposals(points=VoxelPoints(np.zeros((len(scores), 3))), similarity=scores, score=scores)


def mixture(rng, true=60, false=300, low=0.25, high=0.75, width=0.05) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([rng.normal(high, width, true), rng.normal(low, width, false)]).clip(0.001, 0.999)
    order = np.argsort(-scores)
    return scores[order], (np.arange(len(scores)) < true)[order]


def seeds(high=0.75) -> np.ndarray:
    """A seed scores somewhat better against its own query than others of its kind do."""
    return np.tanh(np.arctanh([high]) + 0.25)


@pytest.mark.parametrize("seed", range(5))
def test_two_well_separated_kinds_are_told_apart(seed):
    scores, truth = mixture(np.random.default_rng(seed))
    found = calibrate(proposals(scores), seeds(), None)
    assert 0.4 < found.threshold < 0.8
    assert abs(found.kept - truth.sum()) <= 6
    assert found.expected_precision[truth].mean() > 0.9
    assert found.expected_precision[~truth].mean() < 0.1


def test_a_minimal_precision_cuts_there():
    scores, _ = mixture(np.random.default_rng(0), high=0.5, low=0.3, width=0.08)
    for floor in (0.2, 0.5, 0.9):
        found = calibrate(proposals(scores), seeds(0.5), floor)
        assert (found.expected_precision[: found.kept] >= floor).all()
        assert (found.expected_precision[found.kept :] < floor).all()
        if found.kept:
            assert found.threshold == scores[found.kept - 1]


def test_asking_for_more_precision_keeps_fewer():
    scores, _ = mixture(np.random.default_rng(1), high=0.5, low=0.3, width=0.08)
    kept = [calibrate(proposals(scores), seeds(0.5), floor).kept for floor in (0.0, 0.1, 0.5, 0.9, 0.99)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == len(scores)


@pytest.mark.parametrize("count", [0, 1, MIN_PROPOSALS - 1])
def test_too_few_to_calibrate_are_all_kept(count):
    found = calibrate(proposals(np.linspace(0.1, 0.9, count)), seeds(), None)
    assert found.kept == count
    assert np.isnan(found.expected_precision).all()
    assert found.expected_precision.shape == (count,)


def test_a_precision_asked_of_too_few_is_refused():
    with pytest.raises(DataError, match=f"at least {MIN_PROPOSALS} proposals to calibrate, found 3"):
        calibrate(proposals([0.1, 0.2, 0.3]), seeds(), 0.5)
    assert calibrate(proposals([]), seeds(), 0.5).kept == 0


@pytest.mark.parametrize("seed", range(5))
def test_look_alikes_between_particles_and_background_are_left_out(seed):
    rng = np.random.default_rng(seed)
    scores = np.tanh(np.concatenate([rng.normal(1.3, 0.1, 40), rng.normal(0.8, 0.12, 60), rng.normal(0.3, 0.1, 400)]))
    found = calibrate(proposals(scores), np.tanh([1.5]), None)
    assert 34 <= found.kept <= 48


def test_the_seeds_say_which_of_two_kinds_is_meant():
    rng = np.random.default_rng(0)
    scores = np.tanh(np.concatenate([rng.normal(1.4, 0.1, 40), rng.normal(0.8, 0.1, 40), rng.normal(0.3, 0.1, 400)]))
    upper = calibrate(proposals(scores), np.tanh([1.6]), None)
    both = calibrate(proposals(scores), np.tanh([0.9]), None)
    assert upper.kept < 50 < 60 < both.kept


@effort(max_examples=150, deadline=None)
@given(
    st.lists(
        st.floats(0, 1, allow_nan=False) | st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]),
        min_size=MIN_PROPOSALS,
        max_size=40,
    )
)
def test_precision_falls_with_the_rank_and_is_a_probability(scores):
    found = calibrate(proposals(scores), seeds(), None)
    assert found.expected_precision.shape == (len(scores),)
    assert np.isfinite(found.expected_precision).all()
    assert ((found.expected_precision >= 0) & (found.expected_precision <= 1)).all()
    assert (np.diff(found.expected_precision) <= 1e-9).all()
    assert 0 <= found.kept <= len(scores)


@pytest.mark.parametrize("score", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [MIN_PROPOSALS, 20, 24, 37])
def test_equal_scores_are_treated_alike(score, count):
    found = calibrate(proposals([score] * count), np.array([score]), None)
    assert np.ptp(found.expected_precision) == pytest.approx(0)
    assert np.isfinite(found.expected_precision).all()


def test_scores_of_zero_beside_others_do_no_harm():
    scores, truth = mixture(np.random.default_rng(2))
    found = calibrate(proposals(np.concatenate([scores, np.zeros(200)])), seeds(), None)
    assert np.isfinite(found.expected_precision).all()
    assert found.expected_precision[-200:].max() < 0.5
    assert math.isfinite(found.threshold)
    assert found.expected_precision[: truth.sum()].mean() > 0.5


def test_the_best_expected_f1_against_all_cuts():
    for seed in range(20):
        precision = np.sort(np.random.default_rng(seed).random(30) ** 2)[::-1]
        expected = [2 * precision[:n].sum() / (n + precision.sum()) for n in range(1, 31)]
        assert expected_f1_optimum(precision) == int(np.argmax(expected)) + 1
    assert expected_f1_optimum(np.zeros(0)) == 0
    assert expected_f1_optimum(np.zeros(5)) == 0


def test_keeping_all_needs_no_calibration():
    """The published method keeps every proposal, however few there are."""
    few = proposals(np.linspace(0.9, 0.5, 3))
    assert calibrate(few, np.array([0.9]), 0.0).kept == 3
    with pytest.raises(DataError, match="expected at least"):
        calibrate(few, np.array([0.9]), 0.5)


@pytest.mark.parametrize(
    ("least", "kept", "threshold"), [(None, 2, 0.8), (0.75, 2, 0.8), (0.9, 1, 0.9), (0, 4, 0.05), (0.95, 0, math.inf)]
)
def test_a_known_precision_says_where_to_stop(least, kept, threshold):
    precision = np.array([0.9, 0.8, 0.1, 0.05])
    found = stop_at(precision, precision, least)
    assert (found.kept, found.threshold) == (kept, threshold)
    np.testing.assert_array_equal(found.expected_precision, precision)


@pytest.mark.parametrize(("least", "kept"), [(None, 3), (0.35, 1), (0, 4)])
def test_probabilities_say_where_to_stop_and_precision_what_is_asked_for(least, kept):
    """A precision asked for is the expected one, whatever the F1 is maximised by."""
    precision, probability = np.array([0.4, 0.1, 0.1, 0.02]), np.array([0.9, 0.8, 0.7, 0.05])
    assert stop_at(precision, precision, None).kept == 1
    found = stop_at(precision, precision, least, stop_by=probability)
    assert found.kept == kept
    np.testing.assert_array_equal(found.expected_precision, precision)


def test_a_few_candidates_of_known_precision_are_enough():
    assert stop_at(np.array([0.3]), np.array([0.3]), None).kept == 1
    assert stop_at(np.zeros(3), np.zeros(3), None).kept == 0
    assert stop_at(np.zeros(0), np.zeros(0), None).kept == 0
