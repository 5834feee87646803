from __future__ import annotations

import numpy as np

from copick_cryosam.sasi.labels import IGNORE, label_window, sphere_radius
from copick_cryosam.sasi.points import LabelledPoints, ParticleClass
from copick_cryosam.sasi.settings import LabelSettings
from copick_cryosam.types import VoxelPoints

CLASSES = [ParticleClass(name="big", radius_vox=4.0), ParticleClass(name="small", radius_vox=1.0)]


def _points(*rows: tuple[float, float, float, int, float]) -> LabelledPoints:
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return LabelledPoints(
        points=VoxelPoints(table[:, :3]),
        classes=table[:, 3].astype(np.int64),
        weights=table[:, 4],
        origins=("here",) * len(table),
    )


def test_a_sphere_of_the_objects_radius_stands_where_the_point_is_in_the_window() -> None:
    one = label_window(_points((20, 31, 42, 1, 0.5)), CLASSES, (10, 20, 30), (20, 21, 24), LabelSettings(radius=1.0))
    z, y, x = np.ogrid[:20, :21, :24]
    ball = (z - 10) ** 2 + (y - 11) ** 2 + (x - 12) ** 2 <= 16
    np.testing.assert_array_equal(one.labels, ball)
    np.testing.assert_array_equal(one.weights, np.where(ball, 0.5, 1))


def test_small_objects_get_the_least_radius() -> None:
    assert sphere_radius(CLASSES[1], LabelSettings(radius=1.0, min_radius=2.5)) == 2.5
    assert sphere_radius(CLASSES[0], LabelSettings(radius=0.75)) == 3.0


def test_the_nearer_class_wins_by_share_of_its_radius() -> None:
    points = _points((8, 8, 8, 1, 1.0), (8, 8, 11, 2, 0.25))
    line = label_window(points, CLASSES, (0, 0, 0), (17, 17, 17), LabelSettings(radius=1.0))
    # from 8: radii 4 and 2; 10 is at half of both, where the first point stays
    assert line.labels[8, 8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert line.weights[8, 8, 10:14].tolist() == [1, 0.25, 0.25, 0.25]
    swapped = label_window(points.only(np.array([1, 0])), CLASSES, (0, 0, 0), (17, 17, 17), LabelSettings(radius=1.0))
    assert (swapped.labels != line.labels).sum() == np.count_nonzero(swapped.labels[line.labels == 1] == 2)


def test_ignored_is_what_is_far_from_every_labelled_point() -> None:
    settings = LabelSettings(radius=1.0, ignore_unlabelled=True, near=1.5)
    found = label_window(_points((8, 8, 8, 1, 1.0)), CLASSES, (0, 0, 0), (17, 19, 21), settings).labels
    z, y, x = np.ogrid[:17, :19, :21]
    distance = np.sqrt((z - 8) ** 2 + (y - 8) ** 2 + (x - 8) ** 2)
    np.testing.assert_array_equal(found, np.where(distance <= 4, 1, np.where(distance <= 6, 0, IGNORE)))


def test_no_points_and_points_elsewhere() -> None:
    for ignore, expected in ((False, 0), (True, IGNORE)):
        settings = LabelSettings(radius=1.0, ignore_unlabelled=ignore)
        for points in (_points(), _points((100, 8, 8, 1, 1.0), (-50, -50, -50, 2, 1.0))):
            found = label_window(points, CLASSES, (0, 0, 0), (8, 8, 8), settings)
            assert (found.labels == expected).all()
            assert (found.weights == 1).all()


def test_a_sphere_cut_by_the_windows_border_is_the_same_sphere() -> None:
    points = _points((3.4, 12.2, 7.7, 1, 1.0))
    whole = label_window(points, CLASSES, (-10, -10, -10), (40, 40, 40), LabelSettings(radius=1.0)).labels
    part = label_window(points, CLASSES, (2, 5, 6), (5, 9, 13), LabelSettings(radius=1.0)).labels
    np.testing.assert_array_equal(part, whole[12:17, 15:24, 16:29])
