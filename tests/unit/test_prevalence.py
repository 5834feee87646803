"""The share of particles among candidates is the tomogram's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from copick_cryosam.prevalence import NEUTRAL, at_own_share


def candidates(share: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and the probabilities of one who believes in the share of training: two normals, two apart."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < share
    evidence = rng.normal(size=count) + 2.0 * truth
    odds = np.exp(2.0 * evidence - 2.0) * NEUTRAL / (1 - NEUTRAL)
    return truth, odds / (1 + odds)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.125, 0.3, 0.5])
def test_probabilities_become_those_of_the_tomograms_own_share(share):
    truth, believed = candidates(share, 4000, 1)
    found = at_own_share(believed, np.arange(4000))
    assert found.mean() == pytest.approx(truth.mean(), rel=0.25)
    assert abs(found.mean() - truth.mean()) <= abs(believed.mean() - truth.mean()) + 0.01
    sure = found > 0.5
    assert truth[sure].mean() == pytest.approx(found[sure].mean(), abs=0.12)


def test_few_candidates_tell_little():
    _, believed = candidates(0.0, 2000, 2)
    few, many = at_own_share(believed[:8], np.arange(8)), at_own_share(believed, np.arange(2000))
    assert few.mean() > 0.6 * believed[:8].mean()
    assert many.mean() < 0.3 * believed.mean()


def test_a_candidate_that_stands_for_others_counts_as_often():
    _, believed = candidates(0.1, 60, 3)
    context = np.concatenate([np.arange(60), np.repeat(np.arange(40, 60), 9)])
    together = at_own_share(believed[context], np.arange(len(context)))
    np.testing.assert_allclose(at_own_share(believed, context), together[:60], atol=1e-6)


@given(arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)))
def test_the_order_stays_and_all_are_probabilities(believed):
    found = at_own_share(believed, np.arange(len(believed)))
    assert ((found >= 0) & (found <= 1)).all()
    order = np.argsort(believed, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()


def test_none_stay_none():
    assert at_own_share(np.zeros(0), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_what_is_certain_stays_certain():
    np.testing.assert_array_equal(at_own_share(np.array([0.0, 1.0]), np.arange(2)), [0.0, 1.0])
