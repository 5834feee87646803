"""Whatever the condition, the same particles are at the same places, in Å."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from copick_cryosam.pretraining.conditions import (
    CONDITIONS,
    NOISES,
    REFERENCE,
    Condition,
    noise_conditions,
    positions_under,
    tomogram_under,
)
from copick_cryosam.pretraining.simulate import MARGIN, Specimen, centres_inside

SIZE = (33, 45, 58)
CENTRE = np.array([15.3, 21.6, 33.2])
RADIUS = 8.0
MARGINS = np.array([0, 0, MARGIN])


@pytest.fixture(scope="module")
def ball() -> Specimen:
    """One soft-edged ball, in a tomogram that is neither cubic nor even."""
    shape = (SIZE[0], SIZE[1], SIZE[2] + 2 * MARGIN)
    index = np.indices(shape) - (CENTRE + MARGINS)[:, None, None, None]
    distance = np.sqrt((index**2).sum(axis=0))
    return Specimen(
        density=np.clip(RADIUS + 0.5 - distance, 0, 1).astype(np.float32),
        labels=(distance <= RADIUS).astype(np.uint16),
        clutter=np.zeros(shape, dtype=bool),
        kinds=np.array([0]),
        centres_zyx=CENTRE[None] + MARGINS,
        rotations=np.eye(3)[None],
        radii=np.array([RADIUS]),
    )


def imaged(specimen: Specimen, condition: Condition) -> np.ndarray:
    # hardly any noise and defocus: what is seen is the ball
    clear = replace(condition, snr=1e5)
    return tomogram_under(specimen, clear, 2000.0, np.random.default_rng(1))


@pytest.mark.parametrize("spacing", [5.0, 8.0, 10.0, 15.0, 20.0])
def test_positions_and_radii_are_the_same_in_angstrom_at_every_voxel_spacing(ball, spacing):
    condition = Condition(name="spacing", voxel_spacing=spacing)
    volume = imaged(ball, condition)
    centre = positions_under(centres_inside(ball, 0), condition)[0]
    np.testing.assert_allclose(centre * spacing, CENTRE * 10)

    # as many voxels as fit between the first and the last one
    extent = (np.array(SIZE) - 1) * 10
    assert ((np.array(volume.shape) - 1) * spacing <= extent).all()
    assert (np.array(volume.shape) * spacing > extent).all()

    # the wedge spares the y axis: there the ball has its width, and everywhere its middle
    inside = volume > volume.max() / 2
    found = np.argwhere(inside).mean(axis=0)
    np.testing.assert_allclose(found * spacing, CENTRE * 10, atol=0.45 * spacing)
    width = np.ptp(np.argwhere(inside)[:, 1]) + 1
    assert width * spacing == pytest.approx(2 * RADIUS * 10, abs=1.6 * spacing)


def test_resampling_keeps_the_density(ball):
    from copick_cryosam.pretraining.conditions import _resampled

    mass = ball.density.sum() * 10.0**3
    for spacing in (5.0, 15.0, 20.0):
        density, _ = _resampled(ball.density, spacing / 10)
        assert density.sum() * spacing**3 == pytest.approx(mass, rel=0.03)


def test_a_tilt_axis_along_x_is_the_transposed_tomogram(ball):
    turned = Condition(name="x", tilt_axis="x")
    np.testing.assert_array_equal(imaged(ball, turned), imaged(ball, REFERENCE).transpose(0, 2, 1))
    np.testing.assert_allclose(positions_under(CENTRE[None], turned), CENTRE[None][:, [0, 2, 1]])


def test_dark_particles_are_the_negative(ball):
    np.testing.assert_array_equal(imaged(ball, Condition(name="dark", dark=True)), -imaged(ball, REFERENCE))


def test_conditions_share_the_noise(ball):
    """Where there is next to no signal, the reference and its filtered version resemble each other all the same."""
    quiet = replace(REFERENCE, snr=0.001)
    reference, filtered = (
        tomogram_under(ball, one, 30000.0, np.random.default_rng(3)) for one in (quiet, replace(quiet, median=3))
    )
    other = tomogram_under(ball, quiet, 30000.0, np.random.default_rng(4))
    assert np.corrcoef(reference.ravel(), filtered.ravel())[0, 1] > 0.2
    assert abs(np.corrcoef(reference.ravel(), other.ravel())[0, 1]) < 0.05


def test_names_are_unique_and_the_reference_is_one_of_the_noises():
    names = [one.name for one in (*noise_conditions(NOISES), *CONDITIONS)]
    assert len(set(names)) == len(names)
    assert REFERENCE in noise_conditions(NOISES)


def test_no_positions_stay_none():
    assert positions_under(np.zeros((0, 3)), Condition(name="x", tilt_axis="x", voxel_spacing=5.0)).shape == (0, 3)
