"""Errors of orientations against the truth, with symmetry and the seed's frame."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.measure_orientations import orientation_errors, rotation_angle, self_symmetries

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(centres: np.ndarray, sigma: float = 1.8) -> np.ndarray:
    index = np.indices((21, 21, 21)) - 10
    return np.sum([np.exp(-((index - c.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) / (2 * sigma**2)) for c in centres], 0)


def spun(points: np.ndarray, fold: int) -> np.ndarray:
    """Copies around z."""
    turns = Rotation.from_rotvec([[2 * np.pi * k / fold, 0, 0] for k in range(fold)]).as_matrix()
    return np.concatenate([points @ turn.T for turn in turns])


def test_rotation_angle() -> None:
    some = Rotation.random(6, random_state=0).as_matrix()
    turn = Rotation.from_rotvec([0.0, 0, 25], degrees=True).as_matrix()
    np.testing.assert_allclose(rotation_angle(some @ turn, some), 25, atol=1e-5)
    np.testing.assert_allclose(rotation_angle(some, some), 0, atol=1e-5)


def test_symmetries_are_found_in_the_density() -> None:
    unit = np.array([[3.0, 5.5, 0], [-4.0, 4.0, 2.0]])
    fourfold = self_symmetries(blobs(spun(unit, 4)).astype(np.float32))
    expected = Rotation.from_rotvec([[90.0 * k, 0, 0] for k in range(4)], degrees=True).as_matrix()
    assert len(fourfold) == 4
    nearest = rotation_angle(fourfold[:, None], expected[None])
    assert (nearest.min(axis=0) < 3).all()
    lumps = blobs(np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 2, -6.0]])).astype(np.float32)
    assert len(self_symmetries(lumps)) == 1


def test_errors_are_those_put_in_whatever_the_symmetry_and_the_seed() -> None:
    rng = np.random.default_rng(1)
    true = Rotation.random(30, random_state=rng).as_matrix()
    group = Rotation.from_rotvec([[72.0 * k, 0, 0] for k in range(5)], degrees=True).as_matrix()
    tilt = rng.normal(size=(30, 3))
    tilt *= rng.uniform(0, 12, size=(30, 1)) / np.linalg.norm(tilt, axis=1, keepdims=True)
    wrong = Rotation.from_rotvec(tilt, degrees=True).as_matrix()
    seed = true[0]
    # estimates turn the seed's own box into the particles, each up to a symmetry of the reference
    estimated = wrong @ true @ group[rng.integers(5, size=30)] @ seed.T
    errors = orientation_errors(estimated, true, group, seed.T)
    np.testing.assert_allclose(errors, np.linalg.norm(tilt, axis=1), atol=1e-5)
    assert np.median(orientation_errors(estimated, true, None, seed.T)) > 30
    assert np.median(orientation_errors(estimated, true, group)) > 15


def test_the_direction_is_that_of_turning_a_density() -> None:
    """A particle made from the seed's box by R_est is the reference turned by R_est R_seed."""
    centres = np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 2, -6.0]])
    seed, turn = Rotation.random(2, random_state=3).as_matrix()
    template = centres @ seed.T
    particle = template @ turn.T
    true = Rotation.align_vectors(particle, centres)[0].as_matrix()
    assert orientation_errors(turn[None], true[None], None, seed.T)[0] < 1e-3
