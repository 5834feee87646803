"""Particles taken out of a search, so that the ranking learns that they may be few."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.pretraining.collect_searches import thinned
from copick_cryosam.types import Proposals, VoxelPoints

RADIUS = 5.0
SHARES = (0.05, 1.0)
TRUTH = np.stack(np.meshgrid([20.0, 60.0], [20.0, 60.0, 100.0], [20.0, 60.0, 100.0], indexing="ij"), -1).reshape(-1, 3)


def proposals() -> Proposals:
    """At every particle one hit, one duplicate within the radius, and one place that is of no particle."""
    points = np.concatenate([TRUTH + 1.0, TRUTH + np.array([0, 3.0, 0]), TRUTH + np.array([0, 12.0, 0])])
    score = np.linspace(0.9, 0.1, len(points))
    return Proposals(points=VoxelPoints(points), similarity=score, score=score)


def hits(found: Proposals) -> list[int]:
    """Candidates that each particle has left."""
    distance = np.linalg.norm(found.points.zyx[:, None] - TRUTH[None], axis=2)
    return (distance <= RADIUS).sum(axis=0).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_a_particle_goes_with_all_its_candidates_and_nothing_else(seed):
    found = thinned(proposals(), TRUTH, RADIUS, np.random.default_rng(seed), SHARES)
    assert set(hits(found)) <= {0, 2}
    assert len(found) == sum(hits(found)) + len(TRUTH)
    assert (np.diff(found.score) < 0).all()


def test_some_searches_keep_most_and_others_a_few():
    left = [sum(hits(thinned(proposals(), TRUTH, RADIUS, np.random.default_rng(s), SHARES))) // 2 for s in range(300)]
    assert max(left) >= len(TRUTH) - 2
    assert min(left) <= 1
    assert len(set(left)) > len(TRUTH) // 2


def test_no_search_keeps_more_than_the_largest_share():
    """At most half of 18, and the chance of a few more: each particle is drawn by itself."""
    left = [
        sum(hits(thinned(proposals(), TRUTH, RADIUS, np.random.default_rng(s), (0.05, 0.5)))) // 2 for s in range(300)
    ]
    assert max(left) <= 14
    assert np.mean(left) == pytest.approx(len(TRUTH) * 0.45 / np.log(10), rel=0.15)


@pytest.mark.parametrize("seed", range(10))
def test_the_seeds_stay(seed):
    kept = VoxelPoints(TRUTH[[0, 7]] + 1.5)
    found = thinned(proposals(), TRUTH, RADIUS, np.random.default_rng(seed), SHARES, kept)
    assert hits(found)[0] == hits(found)[7] == 2


def test_without_particles_there_is_nothing_to_take_out():
    assert len(thinned(proposals(), np.zeros((0, 3)), RADIUS, np.random.default_rng(0), SHARES)) == len(proposals())
