"""Halves that keep their distance are one particle; particles that touch are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copick_cryosam.rigid_pairs import rigid_pairs
from copick_cryosam.suppression import survivors


def scattered(rng: np.random.Generator, count: int, apart: float, edge: float = 200.0) -> np.ndarray:
    """Points in a box, none closer than `apart`."""
    points = rng.uniform(0, edge, size=(20 * count, 3))
    return points[survivors(points, apart)][:count]


def halves(rng: np.random.Generator, centres: np.ndarray, distance: float, noise: float = 0.2) -> np.ndarray:
    axis = rng.normal(size=centres.shape)
    axis *= distance / 2 / np.linalg.norm(axis, axis=1, keepdims=True)
    points = np.stack([centres - axis, centres + axis], axis=1).reshape(-1, 3)
    return points + rng.normal(scale=noise, size=points.shape)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_halves_are_found_among_single_picks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = [scattered(rng, 8, 50), scattered(rng, 6, 50)]
    points = [halves(rng, one, 18) for one in centres]
    # of the last three particles one half each was missed
    points[1] = np.delete(points[1], [7, 9, 11], axis=0)
    first, second = rigid_pairs(points, 9)
    assert {tuple(pair) for pair in first.tolist()} == {(2 * k, 2 * k + 1) for k in range(8)}
    assert {tuple(pair) for pair in second.tolist()} == {(2 * k, 2 * k + 1) for k in range(3)}


@given(st.integers(0, 1000), st.integers(2, 120))
@settings(max_examples=60, deadline=None)
def test_particles_that_touch_are_no_halves(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    edge = float(rng.uniform(60, 300))
    points = [scattered(rng, count, 18, edge), scattered(rng, count, 18, edge)]
    assert [len(pairs) for pairs in rigid_pairs(points, 9)] == [0, 0]


def test_rows_of_a_filament_are_no_halves() -> None:
    row = np.arange(20)[:, None] * [0, 0, 18.0] + np.random.default_rng(0).normal(scale=0.3, size=(20, 3))
    assert len(rigid_pairs([row], 9)[0]) == 0


def test_pairs_at_any_distance_are_no_halves() -> None:
    rng = np.random.default_rng(4)
    centres = scattered(rng, 12, 60, 400)
    points = np.concatenate([halves(rng, one[None], float(rng.uniform(15, 27))) for one in centres])
    assert len(rigid_pairs([points], 9)[0]) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_are_left_alone(count: int) -> None:
    points = np.random.default_rng(1).uniform(0, 20, size=(count, 3))
    assert rigid_pairs([points, points[:0]], 9)[0].shape == (0, 2)
    assert rigid_pairs([], 9) == []
