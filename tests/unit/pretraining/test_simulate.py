"""The truth of a simulated specimen is where its density is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.shapes import FAMILIES, Shape, random_shape
from copick_cryosam.pretraining.simulate import (
    MARGIN,
    Scene,
    Specimen,
    build,
    centres_inside,
    crop_truth,
    simulate,
    tomogram_of,
)

SIZE = (24, 40, 44)
IMAGING = Imaging(snr=0.5, tilt_range=50, tilt_step=5)


def globule(radius=5.0, seed=1) -> Shape:
    return random_shape(np.random.default_rng(seed), family="globule", radius=radius)


@pytest.fixture(scope="module")
def crowded():
    shapes = [globule(5.0), globule(3.5, seed=2)]
    return build(Scene(shape_zyx=SIZE, counts=(6, 8), gap=1), shapes, np.random.default_rng(0)), shapes


def lonely(shape: Shape) -> Specimen:
    """A specimen of one particle that no edge cuts."""
    for seed in range(30):
        specimen = build(Scene(shape_zyx=(40, 48, 150), counts=(1,)), [shape], np.random.default_rng(seed))
        reach = shape.density.shape[0] * 3**0.5 / 2
        if len(specimen.kinds) != 1:
            continue
        (centre,) = specimen.centres_zyx
        if (centre > reach).all() and (centre < np.array(specimen.density.shape) - 1 - reach).all():
            return specimen
    raise AssertionError("no particle lies clear of the edges")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_single_particle_lies_where_and_as_its_truth_says(family):
    shape = random_shape(np.random.default_rng(7), family=family, radius=5.0)
    specimen = lonely(shape)
    (centre,), (rotation,) = specimen.centres_zyx, specimen.rotations
    assert np.linalg.norm(np.array(ndimage.center_of_mass(specimen.density)) - centre) < 0.5
    assert (specimen.labels > 0).sum() == pytest.approx(shape.mask.sum(), rel=0.1)
    mass = np.array(ndimage.center_of_mass(specimen.labels > 0))
    assert np.linalg.norm(mass - centre) < 1
    # and it is the shape, turned as recorded
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    offsets = np.argwhere(shape.mask) - (shape.density.shape[0] - 1) / 2
    turned = ndimage.map_coordinates(specimen.density, (offsets @ rotation.T + centre).T, order=1)
    wrong = ndimage.map_coordinates(specimen.density, (offsets @ rotation + centre).T, order=1)
    assert np.corrcoef(turned, shape.density[shape.mask])[0, 1] > 0.85
    assert np.corrcoef(wrong, shape.density[shape.mask])[0, 1] < np.corrcoef(turned, shape.density[shape.mask])[0, 1]


def test_labels_lie_under_centres_and_belong_to_their_kind(crowded):
    specimen, shapes = crowded
    assert len(specimen.centres_zyx) >= 8
    assert specimen.labels.max() == len(specimen.kinds) == len(specimen.radii) == len(specimen.rotations)
    for label, (kind, centre, radius) in enumerate(
        zip(specimen.kinds, specimen.centres_zyx, specimen.radii, strict=True), start=1
    ):
        assert specimen.labels[tuple(np.round(centre).astype(int))] == label
        assert radius == shapes[kind].radius
        own = np.argwhere(specimen.labels == label)
        assert np.linalg.norm(own - centre, axis=1).max() < 2 * radius
        # at least half of each envelope is in the volume, and nobody else painted over it
        assert len(own) > 0.45 * shapes[kind].mask.sum()


def test_particles_keep_their_gap(crowded):
    specimen, _ = crowded
    for label in range(1, len(specimen.kinds) + 1):
        grown = ndimage.binary_dilation(specimen.labels == label)
        assert set(np.unique(specimen.labels[grown])) <= {0, label}


def test_clutter_is_marked_and_free_of_particles():
    scene = Scene(shape_zyx=SIZE, counts=(5,), membranes=1, filaments=1, beads=2)
    specimen = build(scene, [globule(4.0)], np.random.default_rng(2))
    assert 0.005 < specimen.clutter.mean() < 0.6
    assert not (specimen.clutter & (specimen.labels > 0)).any()
    assert (
        specimen.density[specimen.clutter].mean()
        > 5 * specimen.density[~specimen.clutter & (specimen.labels == 0)].mean()
    )
    assert specimen.density.max() > 3  # gold


def test_the_margin_is_cut_from_the_truth(crowded):
    specimen, _ = crowded
    assert specimen.density.shape == (SIZE[0], SIZE[1], SIZE[2] + 2 * MARGIN)
    labels, clutter, inside = crop_truth(specimen)
    assert labels.shape == clutter.shape == SIZE
    centres = centres_inside(specimen)
    assert len(centres) == len(inside) < len(specimen.kinds)
    assert ((centres > -0.5) & (centres < np.array(SIZE) - 0.5)).all()
    for index, centre in zip(inside, centres, strict=True):
        place = np.clip(np.round(centre).astype(int), 0, np.array(SIZE) - 1)
        assert labels[tuple(place)] == index + 1
    assert sum(len(centres_inside(specimen, kind)) for kind in (0, 1)) == len(centres)
    assert centres_inside(build(Scene(shape_zyx=SIZE, counts=(0,)), [globule()], np.random.default_rng(0))).shape == (
        0,
        3,
    )


def test_particles_are_bright_where_the_truth_says():
    volume, specimen = simulate(Scene(shape_zyx=SIZE, counts=(5,)), [globule()], IMAGING, np.random.default_rng(4))
    assert volume.shape == SIZE
    assert volume.dtype == np.float32
    assert volume.mean() == pytest.approx(0, abs=1e-4)
    assert volume.std() == pytest.approx(1, abs=1e-4)
    labels, _, _ = crop_truth(specimen)
    assert volume[labels > 0].mean() > volume[labels == 0].mean() + 0.5


def test_the_same_seed_gives_the_same_tomogram():
    scene = Scene(shape_zyx=SIZE, counts=(3,), membranes=1)
    (one, truth), (same, again) = (simulate(scene, [globule()], IMAGING, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(truth.labels, again.labels)
    np.testing.assert_array_equal(truth.centres_zyx, again.centres_zyx)
    other = tomogram_of(truth, IMAGING, np.random.default_rng(10))
    assert 0.1 < np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.99


def test_a_quarter_turn_moves_density_as_the_recorded_rotation_says(monkeypatch):
    """A rod along z, turned by 90 degrees about y, lies along x."""
    z, y, x = np.indices((21, 21, 21)) - 10
    rod = np.exp(-((y**2 + x**2) / 4 + z**2 / 50)).astype(np.float32)
    shape = Shape(name="rod", family="test", density=rod, mask=rod > 0.3, radius=5.0)
    turn = Rotation.from_matrix([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    monkeypatch.setattr("copick_cryosam.pretraining.simulate.Rotation.random", lambda **_: turn)
    specimen = build(Scene(shape_zyx=(40, 40, 8), counts=(1,)), [shape], np.random.default_rng(1))
    spread = (np.argwhere(specimen.labels == 1) - specimen.centres_zyx[0]).std(axis=0)
    assert spread[2] > 1.5 * max(spread[0], spread[1])
