"""Kinds made of others: new, of the size asked for, and never a part of a barrel."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.pretraining.pool import Supply, draw_shapes
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.warping import WHOLE_ONLY, warped


def drawn(family, radius=8.0, seed=1):
    return random_shape(np.random.default_rng(seed), family=family, radius=radius, name=family)


def test_a_warped_kind_has_about_the_radius_asked_for():
    rng = np.random.default_rng(0)
    made = [warped(rng, drawn("globule", seed=k), drawn("assembly", seed=k), 9.0) for k in range(12)]
    assert {one.family for one in made} == {"warped"}
    assert np.median([one.radius for one in made]) == pytest.approx(9.0, rel=0.15)
    assert all(5.5 < one.radius < 14 for one in made)


def test_what_is_small_is_not_blown_up():
    rng = np.random.default_rng(0)
    made = [warped(rng, drawn("globule", 5.0), drawn("globule", 5.0), 20.0).radius for _ in range(6)]
    assert np.median(made) < 10


def test_no_two_are_the_same_and_one_seed_gives_one_kind():
    one, other = drawn("globule"), drawn("assembly")
    first, again, next_ = (warped(np.random.default_rng(seed), one, other, 8.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.density, again.density)
    assert first.density.shape != next_.density.shape or not np.allclose(first.density, next_.density, atol=0.2)


@pytest.mark.parametrize("family", ["barrel", "capped"])
def test_no_part_of_a_barrel_is_taken(family):
    assert family in WHOLE_ONLY
    barrel, some = drawn(family), [drawn("globule", seed=k) for k in (1, 2)]
    for seed in range(6):
        # whatever stands beside it, the kind is the same
        with_one, with_other = (warped(np.random.default_rng(seed), barrel, one, 8.0).density for one in some)
        np.testing.assert_array_equal(with_one, with_other)


def test_others_are_made_of_two_half_of_the_time():
    made_of_two = 0
    for seed in range(12):
        one, another = (
            warped(np.random.default_rng(seed), drawn("globule"), drawn("rod", seed=k), 8.0).density for k in (1, 2)
        )
        made_of_two += one.shape != another.shape or not np.allclose(one, another)
    assert 3 <= made_of_two <= 9


def test_a_pool_warps_the_share_asked_for():
    rng = np.random.default_rng(4)
    supply = Supply(radii=(5.0, 8.0), warped=0.5)
    families = [shape.family for _ in range(12) for shape in draw_shapes(rng, 5, supply)]
    assert 18 <= families.count("warped") <= 42
    assert all(one.family == "warped" for one in draw_shapes(rng, 5, Supply(radii=(5.0, 8.0), warped=1.0)))
