"""What a candidate's neighbours say of it, on features of a known make."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.neighbourhood import NEAREST, discriminant, neighbourhood

PARTS = 12
pytestmark = pytest.mark.usefixtures("one_thread")


def some_parts(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, PARTS)).astype(np.float32)


def kinds(count: int, apart: float, seed: int = 0) -> np.ndarray:
    """Particles, then as many look-alikes that differ from them in two directions, then as many of anything."""
    rng = np.random.default_rng(seed)
    particle, look_alike = np.ones(PARTS), np.ones(PARTS)
    look_alike[:2] -= apart
    means = np.repeat([particle, look_alike, -particle], count, axis=0)
    return (means + rng.normal(scale=0.3, size=means.shape)).astype(np.float32)


@pytest.mark.parametrize("sure", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
def test_few_candidates_all_or_none_sure_are_told_something(count, sure):
    parts, every, believed = some_parts(count), np.arange(count), np.full(count, sure)
    assert np.isfinite(discriminant(parts, some_parts(1, 9)[0], believed, every)).all()
    found = neighbourhood(parts, some_parts(1, 9)[0], believed, every)
    assert found.shape == (count, 4)
    assert np.isfinite(found).all()
    assert ((found[:, 0] >= 0) & (found[:, 0] <= 1)).all()


def test_the_only_candidate_has_the_seeds_for_a_neighbour():
    parts = some_parts(1)
    said, excess, near, with_seeds = neighbourhood(parts, parts[0] + 1, np.array([0.2]), np.array([0]))[0]
    assert said == 1
    assert excess == 0
    assert near == with_seeds


def test_a_candidate_is_not_its_own_neighbour():
    """However sure it is itself, what its neighbours say stays."""
    parts, every = some_parts(20), np.arange(20)
    sure = np.random.default_rng(1).uniform(size=20)
    before = neighbourhood(parts, some_parts(1, 9)[0], sure, every)
    for one in range(20):
        other = sure.copy()
        other[one] = 1 - other[one]
        after = neighbourhood(parts, some_parts(1, 9)[0], other, every)
        np.testing.assert_array_equal(after[one], before[one])


def test_order_does_not_matter():
    parts, sure, seed = some_parts(30), np.random.default_rng(1).uniform(size=30), some_parts(1, 9)[0]
    order = np.random.default_rng(2).permutation(30)
    for told in (discriminant, neighbourhood):
        before, after = told(parts, seed, sure, np.arange(30)), told(parts[order], seed, sure[order], np.arange(30))
        np.testing.assert_allclose(after, before[order], atol=1e-9)


def test_look_alikes_resemble_each_other_more_than_the_seeds():
    """One of them stands out by chance: the first comparison takes it for a particle, its neighbours know better."""
    count = 20
    parts = kinds(count, apart=3.0)
    sure = np.repeat([0.7, 0.4, 0.02], count)
    sure[count] = 0.9
    said, excess, _, _ = neighbourhood(parts, np.ones(PARTS, dtype=np.float32), sure, np.arange(3 * count)).T
    assert said[:count].min() > 0.65
    assert said[count : 2 * count].max() < 0.55
    assert said[2 * count :].max() < 0.1
    assert excess[:count].mean() > excess[count : 2 * count].mean() + 0.1


def test_the_seeds_are_a_neighbour_that_is_sure():
    """Nothing is sure, but what lies beside the seeds has them for a neighbour."""
    parts, every = kinds(NEAREST + 3, apart=3.0), np.arange(3 * (NEAREST + 3))
    said = neighbourhood(parts, parts[0], np.zeros(len(parts)), every)[:, 0]
    assert said[0] > 1 / NEAREST
    assert (said[NEAREST + 3 :] == 0).all()


def test_candidates_that_stand_for_many_weigh_so_in_the_mean():
    parts = some_parts(8)
    sure, seed = np.random.default_rng(1).uniform(size=8), some_parts(1, 9)[0]
    context = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7])
    repeated = neighbourhood(parts, seed, sure, context)
    assert np.abs(repeated - neighbourhood(parts, seed, sure, np.arange(8))).max() > 0.01
    # cosines of what is left without the mean over all eleven
    centred = parts - parts[context].mean(axis=0)
    against = seed - parts[context].mean(axis=0)
    cosine = centred @ against / np.linalg.norm(centred, axis=1) / np.linalg.norm(against)
    np.testing.assert_allclose(repeated[:, 3], cosine, atol=1e-6)


def test_the_few_directions_that_part_look_alikes_decide():
    """Particles and look-alikes differ in one channel; all vary much more in another."""
    rng = np.random.default_rng(4)
    count, particle = 60, np.arange(60) < 20
    parts = np.full((count, 12), 0.5, dtype=np.float32)
    parts[:, ::4] += rng.normal(scale=0.3, size=(count, 1))
    parts[:, 1::4] += np.where(particle, 0.1, 0.0)[:, None] + rng.normal(scale=0.02, size=(count, 1))
    sure = np.where(particle, 0.7, 0.2)
    parted = discriminant(parts, parts[0], sure, np.arange(count))
    # how often a particle is above a look-alike
    assert (parted[particle][:, None] > parted[~particle]).mean() > 0.8
