"""Voxels and Å convert exactly, up to the edges of the volume, and labels are painted best first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from copick_cryosam.types import AngstromPoints, Grid, Instance, Pose, VoxelPoints, centroids, paint

sides = st.integers(1, 2000)
grids = st.builds(Grid, st.tuples(sides, sides, sides), st.floats(0.5, 60, allow_nan=False))


@given(grids, st.lists(st.tuples(*[st.floats(-1, 2001, allow_nan=False)] * 3), max_size=5))
def test_round_trip_of_voxels(grid: Grid, points: list[tuple[float, float, float]]) -> None:
    voxels = VoxelPoints(np.array(points))
    back = grid.to_voxels(grid.to_angstrom(voxels))
    np.testing.assert_allclose(back.zyx, voxels.zyx, rtol=1e-12, atol=1e-12)


@given(grids)
def test_corner_voxels_come_back_as_the_same_index(grid: Grid) -> None:
    last = [side - 1 for side in grid.shape_zyx]
    corners = VoxelPoints(np.array(np.meshgrid(*[(0, n) for n in last], indexing="ij")).reshape(3, -1).T)
    back = grid.to_voxels(grid.to_angstrom(corners))
    np.testing.assert_array_equal(np.rint(back.zyx), corners.zyx)
    assert grid.contains(back).all()


@given(grids)
def test_contains_ends_half_a_voxel_outside(grid: Grid) -> None:
    size = np.array(grid.shape_zyx, dtype=float)
    inside = VoxelPoints(np.stack([np.full(3, -0.5), size - 0.501]))
    outside = VoxelPoints(np.concatenate([-0.501 * np.eye(3), np.diag(size - 0.5)]))
    assert grid.contains(inside).all()
    assert not grid.contains(outside).any()


def test_axes_are_reversed_and_nothing_is_shifted() -> None:
    grid = Grid((20, 33, 47), 10.0)
    np.testing.assert_array_equal(grid.to_angstrom(VoxelPoints(np.array([1, 2, 3]))).xyz, [[30, 20, 10]])
    np.testing.assert_array_equal(grid.to_voxels(AngstromPoints(np.array([30, 20, 10]))).zyx, [[1, 2, 3]])


@pytest.mark.parametrize("empty", [[], np.empty((0, 3)), np.empty(0)])
def test_no_points(empty: object) -> None:
    points = VoxelPoints(empty)  # type: ignore[arg-type]
    assert len(points) == 0
    assert Grid((2, 3, 4), 1.0).to_angstrom(points).xyz.shape == (0, 3)


def test_points_of_other_shapes_are_refused_and_points_cannot_change() -> None:
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        VoxelPoints(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        VoxelPoints(np.zeros((2, 3))).zyx[0, 0] = 1.0


def one(origin: tuple[int, int, int], mask: np.ndarray) -> Instance:
    return Instance(mask=mask, origin_zyx=origin, prompt_zyx=(9.0, 9.0, 9.0), similarity=1.0, confidence=1.0, score=1.0)


def test_earlier_instance_keeps_shared_voxels() -> None:
    cube = np.ones((2, 2, 2), dtype=bool)
    labels = paint((4, 5, 6), [one((0, 0, 0), cube), one((1, 1, 1), cube), one((2, 3, 4), cube)])
    assert labels.dtype == np.uint16
    assert [int((labels == n).sum()) for n in (1, 2, 3)] == [8, 7, 8]
    assert labels[1, 1, 1] == 1


def test_centroids_lie_in_the_tomogram() -> None:
    mask = np.zeros((2, 3, 4), dtype=bool)
    mask[0, 1, 1:3] = True
    found = centroids([one((10, 20, 30), mask), one((1, 1, 1), np.zeros((1, 1, 1), dtype=bool))])
    np.testing.assert_allclose(found.zyx, [[10, 21, 31.5], [9, 9, 9]])
    assert centroids([]).zyx.shape == (0, 3)


def test_a_pose_has_the_same_rotation_on_reversed_columns() -> None:
    # a quarter turn in the plane of x and y that takes x to y
    quarter = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float)
    pose = Pose(rotation=quarter, centre_zyx=(0.0, 0.0, 0.0))
    np.testing.assert_allclose(pose.rotation_xyz @ [1, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(pose.rotation_xyz, Rotation.from_euler("z", 90, degrees=True).as_matrix(), atol=1e-12)
    point = np.array([1.0, 2, 3])
    for some in Rotation.random(5, random_state=0).as_matrix():
        turned = Pose(rotation=some, centre_zyx=(0.0, 0.0, 0.0))
        np.testing.assert_allclose(turned.rotation_xyz @ point[::-1], (some @ point)[::-1])
