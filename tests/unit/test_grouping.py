"""Particles that look alike are grouped, parts of one particle become one."""

from __future__ import annotations

import numpy as np

from copick_cryosam.detections import Detections
from copick_cryosam.grouping import group
from copick_cryosam.pair_evidence import neighbours
from copick_cryosam.types import VoxelPoints


def found_at(points: np.ndarray, radius: np.ndarray, kind: np.ndarray, odds: float) -> Detections:
    rng = np.random.default_rng(2)
    features = np.eye(8)[kind] + rng.normal(scale=0.02, size=(len(points), 8))
    pairs = neighbours(VoxelPoints(points), radius)
    return Detections(
        points=VoxelPoints(points),
        probability=np.linspace(0.99, 0.5, len(points)),
        radius_vox=radius,
        diameter_vox=2 * radius,
        features=features.astype(np.float32),
        pairs=pairs,
        odds=np.full(len(pairs), odds),
    )


def test_halves_of_one_kind_become_one_particle_each() -> None:
    grid = np.array([(z, y, x) for z in (40, 120) for y in (40, 120, 200) for x in (40, 120, 200)], dtype=float)
    single, double, half = grid[:8], grid[8:], np.array([0, 9, 0])
    points = np.concatenate([single, double - half, double + half])
    found = found_at(points, np.full(28, 9.0), np.repeat([0, 1, 1], [8, 10, 10]), -0.5)
    ((whole, labels),) = group([found], 2)
    assert np.bincount(labels).tolist() == [0, 10, 8]
    np.testing.assert_allclose(sorted(whole.points.zyx[labels == 1].tolist()), sorted(double.tolist()))
    np.testing.assert_allclose(sorted(whole.points.zyx[labels == 2].tolist()), sorted(single.tolist()))
    np.testing.assert_allclose(whole.diameter_vox[labels == 1], 18 * 2 ** (1 / 3))
    np.testing.assert_allclose(whole.radius_vox[labels == 2], 9)
    # as sure as the surer half, and still best first
    np.testing.assert_allclose(sorted(whole.probability[labels == 1]), sorted(found.probability[8:18]))
    assert (np.diff(whole.probability) <= 0).all()
    assert len(whole.pairs) == len(whole.odds) == 0


def test_a_small_part_hardly_moves_the_particle() -> None:
    points = np.array([[50.0, 50, 50], [50, 50, 65], [200, 200, 200]])
    ((whole, _),) = group([found_at(points, np.array([12.0, 6.0, 9.0]), np.array([0, 1, 2]), 1.5)], 1)
    assert len(whole) == 2
    np.testing.assert_allclose(whole.points.zyx[0], [50, 50, 50 + 15 / 9])
    np.testing.assert_allclose(whole.radius_vox, [12 * 1.125 ** (1 / 3), 9])
    # it looks as its larger part does
    assert whole.features[0].argmax() == 0


def test_nothing_found_is_nothing_grouped() -> None:
    assert group([], None) == []
    nothing = found_at(np.empty((0, 3)), np.empty(0), np.empty(0, dtype=int), 1.0)
    ((whole, labels),) = group([nothing], None)
    assert len(whole) == len(labels) == 0
