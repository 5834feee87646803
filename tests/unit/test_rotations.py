"""Rotations: even over the group, and fine around one of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from copick_cryosam.rotations import angles_between, even_directions, even_rotations, small_rotations, spacing_of


@pytest.mark.parametrize("count", [1, 24, 500])
def test_they_are_rotations(count):
    rotations = even_rotations(count)
    assert rotations.shape == (count, 3, 3)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (count, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)


def test_no_orientation_is_far_from_one_of_them():
    rotations = even_rotations(1500)
    anywhere = Rotation.random(300, random_state=0).as_matrix()
    nearest = angles_between(anywhere[:, None], rotations[None]).min(axis=1)
    assert np.median(nearest) < spacing_of(1500)
    assert nearest.max() < 1.2 * spacing_of(1500)


def test_spacing_falls_with_the_third_root_of_the_count():
    assert spacing_of(8000) == pytest.approx(spacing_of(1000) / 2)


def test_small_rotations_turn_by_what_was_asked():
    around = small_rotations(7.0)
    angles = np.sort(angles_between(around, np.eye(3)))
    assert angles[0] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(angles[1:], 7.0, atol=1e-6)


def test_angles_are_symmetric_and_invariant():
    a, b, c = (Rotation.random(20, random_state=seed).as_matrix() for seed in range(3))
    np.testing.assert_allclose(angles_between(a, b), angles_between(b, a))
    np.testing.assert_allclose(angles_between(c @ a, c @ b), angles_between(a, b), atol=1e-6)


@pytest.mark.parametrize("count", [1, 32, 90])
def test_even_directions_are_of_unit_length_and_balance(count):
    directions = even_directions(count)
    assert directions.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    if count > 1:
        assert np.linalg.norm(directions.mean(axis=0)) < 0.02
        nearest = np.sort(directions @ directions.T, axis=1)[:, -2]
        # no two nearer than half of what evenly spread ones are
        assert np.degrees(np.arccos(nearest)).min() > 0.5 * np.degrees(np.sqrt(4 * np.pi / count))
