"""The ranking nets: what goes in, what comes out. Nothing here depends on the values of the shipped weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copick_cryosam.ranker import FIRST, MEMBERS, SECOND, THIRD, BetaCurve, Ranker, Rankers, load_rankers

COLUMNS = {"first": FIRST, "second": SECOND, "third": THIRD}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rankers() -> Rankers:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Rankers().eval()


@pytest.fixture(scope="module")
def shipped() -> Rankers:
    return load_rankers()


@pytest.mark.parametrize("which", COLUMNS)
def test_rows_give_probabilities_whatever_they_hold(rankers, which):
    rows = np.random.default_rng(0).normal(size=(7, COLUMNS[which]))
    rows[0], rows[1], rows[2, ::2], rows[3] = 1e30, -1e30, np.inf, 0
    found = rankers.probability(rows, which)
    assert found.shape == (7,)
    assert found.dtype == np.float64
    assert ((found > 0) & (found < 1)).all()
    assert len(set(found.tolist())) == 7
    np.testing.assert_array_equal(found, rankers.probability(rows, which))
    np.testing.assert_allclose(rankers.probability(rows[::-1].copy(), which), found[::-1], rtol=1e-5)
    assert rankers.probability(rows[:0], which).shape == (0,)


def test_what_training_never_saw_is_not_extrapolated(rankers):
    far, farther = np.full((1, FIRST), 50.0), np.full((1, FIRST), 5e6)
    np.testing.assert_array_equal(rankers.probability(far, "first"), rankers.probability(farther, "first"))


def test_evidence_is_standardised_and_logits_are_averaged():
    net = Ranker(3)
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plain = net.each(rows)
    assert plain.shape == (MEMBERS, 5)
    assert plain.std(dim=0).min() > 0
    torch.testing.assert_close(net(rows), plain.mean(dim=0))
    net.centre.copy_(torch.tensor([1.0, -2, 3]))
    net.scale.copy_(torch.tensor([2.0, 0.5, 10]))
    torch.testing.assert_close(net.each(rows * net.scale + net.centre), plain)


def curve(*coefficients: float) -> BetaCurve:
    made = BetaCurve()
    made.coefficients.copy_(torch.tensor(coefficients))
    return made


def test_a_new_curve_changes_nothing():
    p = np.array([0, 1e-5, 0.02, 0.5, 0.97, 1 - 1e-5, 1])
    np.testing.assert_allclose(BetaCurve().expected(p), p, rtol=1e-6)
    assert BetaCurve().expected(np.zeros(0)).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 5), st.floats(0, 5), st.floats(-5, 5))
def test_a_curve_keeps_the_order_and_gives_probabilities(p, a, b, c):
    found = curve(a, b, c).expected(np.sort(p))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_a_curve_is_that_of_beta_calibration():
    p = np.array([0.2, 0.9])
    odds = p**1.5 / (1 - p) ** 0.5 * np.exp(-1)
    np.testing.assert_allclose(curve(1.5, 0.5, -1).expected(p), odds / (1 + odds))


def test_what_is_known_stays_known():
    np.testing.assert_array_equal(curve(1.2, 0.7, -0.5).expected(np.array([0.0, 1.0])), [0, 1])


@pytest.mark.parametrize("which", COLUMNS)
def test_the_shipped_weights_load_and_give_probabilities(shipped, which):
    rng = np.random.default_rng(1)
    net = getattr(shipped, which)
    assert (net.scale > 0).all()
    usual = net.centre.numpy() + net.scale.numpy() * rng.normal(size=(50, COLUMNS[which]))
    for rows in (usual, 1e6 * usual, np.zeros((1, COLUMNS[which]))):
        found = shipped.probability(rows, which)
        assert ((found >= 0) & (found <= 1)).all()
    assert np.ptp(shipped.probability(usual, which)) > 0.05
    assert not shipped.training
