"""Particles that look alike are grouped, halves of one particle become one."""

from __future__ import annotations

import numpy as np

from copick_cryosam.detections import Detections, group
from copick_cryosam.types import VoxelPoints


def test_halves_of_one_kind_become_one_particle_each() -> None:
    rng = np.random.default_rng(2)
    grid = np.array([(z, y, x) for z in (40, 120) for y in (40, 120, 200) for x in (40, 120, 200)], dtype=float)
    single, double, half = grid[:8], grid[8:], np.array([0, 9, 0])
    points = np.concatenate([single, double - half, double + half])
    kind = np.repeat([0, 1, 1], [8, 10, 10])
    features = np.eye(8)[kind] + rng.normal(scale=0.02, size=(28, 8))
    found = Detections(
        points=VoxelPoints(points),
        probability=np.linspace(0.99, 0.5, 28),
        radius_vox=np.full(28, 9.0),
        diameter_vox=np.full(28, 16.0),
        features=features.astype(np.float32),
    )
    ((whole, labels),) = group([found], 2)
    assert np.bincount(labels).tolist() == [0, 10, 8]
    np.testing.assert_allclose(sorted(whole.points.zyx[labels == 1].tolist()), sorted(double.tolist()))
    np.testing.assert_allclose(sorted(whole.points.zyx[labels == 2].tolist()), sorted(single.tolist()))
    np.testing.assert_allclose(whole.diameter_vox[labels == 1], 16 * 2 ** (1 / 3))
    np.testing.assert_allclose(whole.radius_vox[labels == 2], 9)
    # as sure as the surer half, and still best first
    np.testing.assert_allclose(sorted(whole.probability[labels == 1]), sorted(found.probability[8:18]))
    assert (np.diff(whole.probability) <= 0).all()
    assert group([], None) == []
