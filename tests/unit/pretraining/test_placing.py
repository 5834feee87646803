"""Where the domains of random complexes lie."""

from __future__ import annotations

import numpy as np

from copick_cryosam.pretraining.placing import around, corners_of, random_direction


def test_points_around_the_axis_are_z_y_x():
    points = around([1, 2], 3, [0, np.pi / 2])
    np.testing.assert_allclose(points, [[1, 0, 3], [2, 3, 0]], atol=1e-12)
    assert around(0, 1, corners_of(5)).shape == (5, 3)
    assert around(np.zeros((2, 1)), 1, corners_of(5)).shape == (2, 5, 3)


def test_corners_are_spread_evenly_and_do_not_close():
    np.testing.assert_allclose(np.diff(corners_of(6)), np.pi / 3)
    assert corners_of(6)[0] == 0
    assert corners_of(6)[-1] < 2 * np.pi - 1


def test_directions_favour_none():
    rng = np.random.default_rng(0)
    directions = np.array([random_direction(rng) for _ in range(2000)])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / 2000, np.eye(3) / 3, atol=0.04)
    assert np.abs(directions.mean(axis=0)).max() < 0.06
