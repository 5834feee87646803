"""Particles out of a label volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from copick_cryosam.sasi import splitting
from copick_cryosam.sasi.components import WHOLE, find_particles
from copick_cryosam.sasi.settings import InferenceSettings
from copick_cryosam.sasi.splitting import split

RADII = (1.5, 1.0, 1.0)
"""Of the classes' labels: 14.1 and 4.2 voxels."""


def found_in(labels, *, probability=None, min_size=0.0, min_score=0.0, splits=None, radii=RADII):
    sure = np.full(labels.shape, 1.0) if probability is None else probability
    settings = InferenceSettings(min_size=min_size, min_score=min_score, split=splits)
    return find_particles(labels, (sure * WHOLE).astype(np.uint16), radii, settings)


def test_touching_classes_are_parted_and_corners_join():
    labels = np.zeros((9, 10, 11), dtype=np.uint8)
    labels[2:4, 2:5, 3:5] = 1
    labels[4, 5, 5] = 1  # touches by a corner
    labels[2:4, 2:5, 5:7] = 2  # touches by faces
    labels[8, 9, 10] = 3  # the last voxel of the volume
    before = labels.copy()
    first, second, third = found_in(labels)
    assert [len(first), len(second), len(third)] == [1, 1, 1]
    assert first[0].size == 13
    assert second[0].origin_zyx == (2, 2, 5)
    assert second[0].mask.shape == (2, 3, 2)
    assert third[0].centroid_zyx == (8, 9, 10)
    assert np.array_equal(labels, before)
    for label, (one,) in enumerate((first, second, third), start=1):
        assert np.array_equal(labels[one.slices] == label, one.mask)
        assert np.allclose(one.centroid_zyx, np.argwhere(before == label).mean(axis=0))
        assert np.allclose(one.prompt_zyx, one.centroid_zyx)


def test_the_score_is_the_mean_probability_and_orders_the_particles():
    labels, sure = np.zeros((6, 7, 20), dtype=np.uint8), np.full((6, 7, 20), 0.99)
    for start, value in ((1, 0.5), (7, 0.9), (13, 0.7)):
        labels[1:3, 1:3, start : start + 3] = 2
        sure[1:3, 1:3, start : start + 2] = value
        sure[1:3, 1:3, start + 2] = value - 0.3
    nothing, some, _ = found_in(labels, probability=sure)
    assert nothing == []
    assert [one.origin_zyx[2] for one in some] == [7, 13, 1]
    assert np.allclose([one.score for one in some], [0.8, 0.6, 0.4], atol=1e-4)
    assert all(one.score == one.similarity == one.confidence for one in some)


def test_what_is_too_small_or_too_unsure_is_dropped_from_the_labels_too():
    labels, sure = np.zeros((8, 9, 30), dtype=np.uint8), np.full((8, 9, 30), 0.9)
    labels[1:4, 1:4, 1:4] = 1
    labels[1, 1, 6:9] = 1  # 3 voxels: too few for class 1
    labels[1, 1, 12:15] = 2  # and enough for class 2
    labels[6, 6, 25] = 2
    labels[1:4, 1:4, 20:23] = 1
    sure[:, :, 20:23] = 0.4
    first, second, _ = found_in(labels, probability=sure, min_size=0.5, min_score=0.5)
    assert [one.origin_zyx for one in first] == [(1, 1, 1)]
    assert [one.size for one in second] == [3]
    assert np.bincount(labels.ravel()).tolist() == [labels.size - 30, 27, 3]


def test_nothing_is_no_particle():
    labels = np.zeros((5, 6, 7), dtype=np.uint8)
    assert found_in(labels) == [[], [], []]
    assert not labels.any()


def touching(*centres, radius=5.0, shape=(15, 24, 45)):
    """Label spheres, and the field they come from."""
    where = np.indices(shape).reshape(3, -1).T
    distance = np.min([np.linalg.norm(where - centre, axis=1) for centre in centres], axis=0)
    return (distance <= radius).reshape(shape)


CHAIN = ((7, 8, 6), (7, 13, 14), (7, 8, 22), (8, 15, 30))
"""Of spheres of radius 5, whose distances are 9.4 and 10.7."""


@pytest.mark.parametrize("tile", [96, 10])
def test_touching_particles_are_parted(tile, monkeypatch):
    monkeypatch.setattr(splitting, "_TILE", tile)
    labels = ndimage.binary_dilation(touching(*CHAIN)).astype(np.uint8)
    before = labels.copy()
    (published,) = found_in(labels.copy(), radii=(5.0,))
    assert len(published) == 1
    (parts,) = found_in(labels, radii=(5.0,), splits=1.5)
    found = np.array(sorted(part.centroid_zyx for part in parts))
    assert len(found) == len(CHAIN)
    nearest = np.linalg.norm(found[:, None] - np.array(CHAIN), axis=2).min(axis=1)
    assert nearest.max() < 1
    assert np.array_equal(labels, before)
    owned = np.zeros(labels.shape, dtype=int)
    for part in parts:
        owned[part.slices] += part.mask
    assert np.array_equal(owned, before)  # each voxel has one owner


def test_a_large_or_long_particle_stays_whole():
    ball = touching((7, 12, 20), radius=6.5)  # 2.2 times the volume of a label
    assert len(split(ball, 5.0, 1.5)) == 1
    rough = ball ^ (np.random.default_rng(0).random(ball.shape) < 0.05) & ndimage.binary_dilation(ball)
    assert len(split(rough, 5.0, 1.5)) == 1
    pair = touching((7, 8, 6), (7, 8, 15))
    assert len(split(pair, 5.0, None)) == 1
    assert len(split(pair, 5.0, 2.5)) == 1
    assert len(split(pair, 5.0, 1.5)) == 2


def test_parts_that_are_too_small_are_dropped():
    pair = touching((7, 8, 8), (7, 8, 17)).astype(np.uint8)
    pair[:, :, 18:] = 0  # little more than half of the second one is left
    labels = pair.copy()
    assert [len(found_in(pair, radii=(5.0,), splits=1.2, min_size=share)[0]) for share in (0.5, 0.8)] == [2, 1]
    assert 0.3 < pair.sum() / labels.sum() < 0.7
