"""Spheres around peaks, and what is read on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.peak_evidence import peak_evidence
from copick_cryosam.ranker import PEAKS, load_peak_rankers
from copick_cryosam.spheres import REGIONS, nearest_cells, on_spheres, read_spheres
from copick_cryosam.types import VoxelPoints

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = CellGrid((20, 25, 30), (2.0, 2.0, 2.0), (39, 50, 59))
CENTRE = np.array([[20.0, 24.0, 30.0]])


def ball(radius: float, channels: int = 3) -> DenseFeatures:
    """Foreground within a radius of the centre; the first channel inside, the second outside."""
    cells = np.indices(GRID.shape).reshape(3, -1).T
    inside = np.linalg.norm(GRID.to_voxels(cells).zyx - CENTRE, axis=1).reshape(GRID.shape) <= radius
    values = np.zeros((channels, *GRID.shape), dtype=np.float16)
    values[0], values[1] = inside, ~inside
    return DenseFeatures(
        values=torch.from_numpy(values),
        grid=GRID,
        centre=np.full(GRID.shape, 0.25, dtype=np.float32),
        foreground=inside.astype(np.float32),
    )


def test_places_lie_on_spheres_of_each_points_own_radius() -> None:
    points = VoxelPoints(np.array([[5.0, 6, 7], [20, 24, 30]]))
    places = on_spheres(points, np.array([4.0, 10.0]))
    far = np.linalg.norm(places - points.zyx[:, None, None], axis=-1)
    np.testing.assert_allclose(far, np.array([[4.0], [10.0]])[..., None] * np.array(REGIONS)[:, None] * np.ones(32))
    # evenly, as nearly as 32 can
    assert np.abs(places[1].mean(axis=1) - points.zyx[1]).max() < 0.5


def test_a_particle_ends_at_its_radius() -> None:
    points = VoxelPoints(CENTRE)
    seen, foreground, centre = read_spheres(ball(10.0), points, on_spheres(points, np.array([10.0])))
    assert centre == [0.25]
    np.testing.assert_allclose(foreground[0, :2], 1)
    assert 0.1 < foreground[0, 2] < 0.7
    np.testing.assert_allclose(foreground[0, 3], 0)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(seen[0, 0], [1, 0, 0])
    np.testing.assert_allclose(seen[0, 3], [0, 1, 0])


def test_outside_is_the_nearest_edge() -> None:
    features = ball(10.0)
    corners = np.array([[-50.0, -50, -50], [500, 500, 500]])
    np.testing.assert_array_equal(nearest_cells(features, corners), [[0, 0, 0], np.array(GRID.shape) - 1])
    rows = peak_evidence(features, VoxelPoints(corners.clip(0, [38, 49, 58])), np.array([15.0, 15.0]), np.ones(2))
    assert np.isfinite(rows).all()


def test_sizes_are_told_in_the_nets_voxels() -> None:
    """The same cells of a tomogram of twice the voxel spacing: half as many voxels each way."""
    fine = ball(10.0)
    coarse = DenseFeatures(
        values=fine.values,
        grid=CellGrid(GRID.shape, (1.0, 1.0, 1.0)),
        centre=fine.centre,
        foreground=fine.foreground,
    )
    cells = GRID.to_cells(VoxelPoints(CENTRE))
    one = peak_evidence(fine, VoxelPoints(CENTRE), np.array([10.0]), np.array([0.7]))
    other = peak_evidence(coarse, coarse.grid.to_voxels(cells), np.array([5.0]), np.array([0.7]))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert one.shape == (1, 3 + 4 + 4 * 3)
    np.testing.assert_allclose(one[0, :3], [np.log(0.71), np.log(10), 0.25])


def test_many_points_are_read_as_few_are() -> None:
    features = ball(10.0)
    many = VoxelPoints(np.random.default_rng(0).uniform(0, [38, 49, 58], size=(2500, 3)))
    seen, foreground, _ = read_spheres(features, many, on_spheres(many, np.full(2500, 6.0)))
    some = VoxelPoints(many.zyx[2000:2010])
    np.testing.assert_array_equal(seen[2000:2010], read_spheres(features, some, on_spheres(some, np.full(10, 6.0)))[0])
    assert len(foreground) == 2500


def test_features_without_maps_are_refused() -> None:
    features = DenseFeatures(values=torch.zeros(2, 4, 4, 4), grid=CellGrid((4, 4, 4), (2, 2, 2)))
    with pytest.raises(ValueError, match="centre maps"):
        peak_evidence(features, VoxelPoints(CENTRE), np.array([3.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="foreground and centre maps"):
        read_spheres(features, VoxelPoints(CENTRE), on_spheres(VoxelPoints(CENTRE), np.array([3.0])))


def test_no_peaks_are_no_rows() -> None:
    rows = peak_evidence(ball(5.0), VoxelPoints(np.empty((0, 3))), np.empty(0), np.empty(0))
    assert rows.shape == (0, 3 + 4 + 4 * 3)


def test_the_shipped_net_is_of_the_shipped_encoders_columns() -> None:
    ranker = load_peak_rankers()
    one = peak_evidence(ball(10.0, channels=32), VoxelPoints(CENTRE), np.array([10.0]), np.ones(1))
    assert one.shape == (1, PEAKS)
    rows = np.random.default_rng(0).normal(size=(5, PEAKS))
    found = ranker.probability(rows)
    assert ((found >= 0) & (found <= 1)).all()
    assert ranker.signature.startswith("peaks-")
