"""Numbers that candidates get from the classes that compete for them."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.class_evidence import margin, third_evidence
from copick_cryosam.classification import GROUPS
from copick_cryosam.fisher import fisher_z
from copick_cryosam.ranker import FIRST, THIRD

SCALED, LEVEL, SIDE = 11, 16, 19
"""First of the columns of margins on Fisher's scale, of fits and of sides."""
PARTICLES, WON, REST = slice(0, 6), slice(6, 12), slice(12, 20)


def two_kinds(ours: float, theirs: float, lead: float = 0.1) -> np.ndarray:
    """Fits of six particles, six of another class and eight that fit nothing, with both; shape (1 + GROUPS, 20)."""
    fits = np.full((1 + GROUPS, 20), np.nan)
    fits[:2] = 0.2
    fits[:2, PARTICLES] = [[ours], [ours - lead]]
    fits[:2, WON] = [[theirs - lead], [theirs]]
    return fits


def evidence(fits: np.ndarray, probable: np.ndarray | None = None, members: int = 6) -> np.ndarray:
    count = fits.shape[1]
    if probable is None:
        probable = np.where(np.arange(count) < 6, 0.9, 0.05)
    first = np.zeros((count, FIRST))
    return third_evidence(first, probable, fits, members, np.arange(count))


def test_every_column_is_a_number_whatever_classes_there_are():
    rng = np.random.default_rng(0)
    for count in (1, 2, 20):
        for rivals in range(GROUPS + 1):
            fits = np.full((1 + GROUPS, count), np.nan)
            fits[: 1 + rivals] = rng.uniform(-1, 1, size=(1 + rivals, count))
            found = evidence(fits, rng.uniform(size=count))
            assert found.shape == (count, THIRD)
            assert np.isfinite(found).all()
    assert np.isfinite(evidence(np.ones((1 + GROUPS, 3)), np.zeros(3))).all()


def test_a_margin_counts_more_where_both_fit_well():
    weak, strong = (evidence(two_kinds(height, height)) for height in (0.45, 0.85))
    np.testing.assert_allclose(weak[PARTICLES, 1], strong[PARTICLES, 1])
    assert (strong[PARTICLES, SCALED] > 2 * weak[PARTICLES, SCALED]).all()
    np.testing.assert_allclose(strong[PARTICLES, SCALED], fisher_z(np.array([0.85]))[0] - fisher_z(np.array([0.75]))[0])


def test_candidates_are_on_the_side_of_the_particles_or_of_those_that_another_class_won():
    fits = two_kinds(0.7, 0.7)
    fits[:2, 12] = 0.65
    fits[:2, 13] = [0.65, 0.69]
    probable = np.where(np.arange(20) < 6, 0.9, 1e-6)
    side = evidence(fits, probable)[:, SIDE]
    np.testing.assert_allclose(side[PARTICLES], 1, atol=1e-3)
    np.testing.assert_allclose(side[WON], 0, atol=0.1)
    # as far from the ones as from the others, and nearer to the others
    assert side[12] == pytest.approx(0.5, abs=0.06)
    assert side[13] < 0.35


def test_without_another_class_there_are_no_sides():
    fits = two_kinds(0.7, 0.7)
    fits[1] = np.nan
    found = evidence(fits)
    np.testing.assert_array_equal(margin(fits), 0)
    np.testing.assert_array_equal(found[:, SIDE:], 0)
    # a class that is there but has won nothing has no side either
    behind = two_kinds(0.7, 0.7)
    behind[1] = behind[0] - 0.05
    np.testing.assert_array_equal(evidence(behind)[:, SIDE:], 0)


def test_fits_are_measured_from_what_particles_usually_have():
    fits = two_kinds(0.8, 0.6)
    found = evidence(fits, np.where(np.arange(20) < 6, 0.9, 1e-6))
    usual = fisher_z(np.array([0.8]))[0]
    np.testing.assert_allclose(found[:, LEVEL + 1], usual, atol=1e-3)
    np.testing.assert_allclose(found[PARTICLES, LEVEL], 0, atol=1e-3)
    assert (found[REST, LEVEL] < -0.5).all()
    np.testing.assert_allclose(found[WON, LEVEL + 2], fisher_z(np.array([0.6]))[0] - usual, atol=1e-3)
