"""Standardising, refusing what cannot be used, and deciding whether particles are dark or bright."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.contrast import brighten, check, decide_polarity, grid_of, seed_contrast, smooth, standardise
from copick_cryosam.errors import DataError, SeedError
from copick_cryosam.types import Grid, VoxelPoints

SHAPE = (33, 48, 53)
CENTRES = ((16, 20, 20), (10, 36, 40), (3, 8, 47), (25, 44, 6))
RADIUS = 5.0


def noise(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def balls(sign=1.0, centres=CENTRES, radius=RADIUS, strength=1.0) -> np.ndarray:
    """Standardised balls in noise, bright where `sign` is 1."""
    values = noise()
    for centre in centres:
        distance = np.sqrt(((np.indices(SHAPE) - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0))
        values[distance <= radius] += sign * strength
    return standardise(values)


def seeds(*points) -> VoxelPoints:
    return VoxelPoints(np.array(points, dtype=float))


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((20, 20)), r"expected 3 axes \(z, y, x\), found 2"),
        (np.zeros((1, 20, 20, 20)), "found 4"),
        (noise((15, 20, 20)), r"at least 16 voxels a side, found \(15, 20, 20\)"),
        (np.full((16, 16, 16), 3.5), "found the constant 3.5"),
        (np.zeros((16, 16, 16)), "found the constant 0"),
    ],
)
def test_volumes_in_which_nothing_can_be_found(volume, message):
    with pytest.raises(DataError, match=message) as caught:
        check(volume)
    assert caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(bad):
    volume = noise((16, 17, 18))
    volume[3, 4, 5] = volume[15, 16, 17] = bad
    with pytest.raises(DataError, match="found 2 NaN or infinite"):
        check(volume)


def test_infinities_of_both_signs_do_not_cancel():
    volume = noise((16, 17, 18))
    volume[0, 0, 0], volume[0, 0, 1] = np.inf, -np.inf
    with pytest.raises(DataError, match="found 2 NaN or infinite"):
        check(volume)


def test_the_smallest_usable_volume_and_large_finite_voxels_pass():
    check(noise((16, 16, 16)))
    check(noise((16, 16, 16)).clip(-3, 3) * np.float32(1e38))


# --- standardising ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -3e-5, 2e4])
def test_gold_does_not_flatten_the_bulk(scale):
    volume = noise() * np.float32(scale) + np.float32(7 * scale)
    untouched = volume.copy()
    volume[2:5, 2:5, 2:5] += np.float32(500 * scale)
    result = standardise(volume)
    bulk = np.ones(SHAPE, bool)
    bulk[2:5, 2:5, 2:5] = False
    assert result.dtype == np.float32
    assert abs(result[bulk].mean()) < 0.02
    assert result[bulk].std() == pytest.approx(1, abs=0.03)
    assert np.abs(result).max() < 5
    np.testing.assert_array_equal(volume[bulk], untouched[bulk])


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64, ">f4", np.float16])
def test_any_unit_becomes_float32(dtype):
    volume = (noise() * 20 + 100).astype(dtype)
    result = standardise(volume)
    assert result.dtype == np.dtype(np.float32)
    assert result.std() == pytest.approx(1, abs=0.03)
    assert not np.shares_memory(result, volume)


def test_contrast_in_a_few_voxels_only():
    volume = np.zeros((20, 20, 20), np.float32)
    volume[3, 3, 3] = 5
    result = standardise(volume)
    assert np.isfinite(result).all()
    assert result.std() == pytest.approx(1, abs=1e-3)
    assert result.argmax() == volume.argmax()


def test_a_large_volume_is_sampled(monkeypatch):
    monkeypatch.setattr("copick_cryosam.contrast._SAMPLE", 4000)
    result = standardise(noise() * 3 + 11)
    assert abs(result.mean()) < 0.1
    assert result.std() == pytest.approx(1, abs=0.1)


# --- polarity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "expected"), [(1.0, "light"), (-1.0, "dark")])
@pytest.mark.parametrize("told", ["auto", "same"])
def test_polarity_is_seen_from_the_seeds(sign, expected, told):
    volume = balls(sign)
    found = decide_polarity(volume, seeds(*CENTRES[:2]), RADIUS, expected if told == "same" else "auto")
    assert found == expected
    contrast, error = seed_contrast(volume, seeds(*CENTRES[:2]), RADIUS)
    assert sign * contrast > 0.5
    assert 0 < error < 0.2


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("corner", [(0, 0, 0), (32, 47, 52), (0, 24, 52)])
def test_a_seed_in_a_corner_of_the_volume(sign, corner):
    volume = balls(sign, [corner])
    assert decide_polarity(volume, seeds(corner), RADIUS, "auto") == ("light" if sign > 0 else "dark")


@pytest.mark.parametrize("told", ["dark", "light"])
def test_being_told_the_opposite_of_what_the_seeds_show_is_an_error(told):
    volume = balls(1.0 if told == "dark" else -1.0)
    seen, word = ("light", "brighter") if told == "dark" else ("dark", "darker")
    with pytest.raises(SeedError, match=f"expected {told} particles, found the seeds {word} than") as caught:
        decide_polarity(volume, seeds(*CENTRES), RADIUS, told)
    assert caught.value.hint == f"Use --polarity {seen} or --polarity auto"


def test_seeds_without_contrast_are_an_error_unless_told():
    volume = standardise(noise())
    point = seeds((16, 24, 26))
    with pytest.raises(SeedError, match="neither darker nor brighter") as caught:
        decide_polarity(volume, point, 8.0, "auto")
    assert "--polarity dark" in caught.value.hint
    assert decide_polarity(volume, point, 8.0, "dark") == "dark"
    assert decide_polarity(volume, point, 8.0, "light") == "light"


def test_a_radius_that_leaves_no_surroundings_shows_no_contrast():
    with pytest.raises(SeedError, match="neither darker nor brighter"):
        decide_polarity(balls(), seeds(CENTRES[0]), 150.0, "auto")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_tube_seeded_on_its_axis(sign):
    """The seed's own voxel is as the solvent; the wall within the radius decides."""
    values = noise(SHAPE)
    _, y, x = np.indices(SHAPE)
    across = np.sqrt((y - 24) ** 2 + (x - 26) ** 2)
    values[(across >= 6) & (across <= 9)] += sign * 1.5
    volume = standardise(values)
    assert decide_polarity(volume, seeds((16, 24, 26)), 9.5, "auto") == ("light" if sign > 0 else "dark")


def test_a_hollow_ball_seeded_at_its_centre():
    values = noise(SHAPE)
    distance = np.sqrt(((np.indices(SHAPE) - np.array((16, 24, 26))[:, None, None, None]) ** 2).sum(axis=0))
    values[(distance >= 6) & (distance <= 9)] -= 1.5
    assert decide_polarity(standardise(values), seeds((16, 24, 26)), 9.5, "auto") == "dark"


def test_brighten_turns_dark_particles_only():
    volume = noise((16, 16, 16))
    before = volume.copy()
    np.testing.assert_array_equal(brighten(volume, "light"), before)
    np.testing.assert_array_equal(brighten(volume, "dark"), -before)


def test_smoothing_keeps_the_mean_and_the_type():
    volume = noise() + 3
    result = smooth(volume, 2.0)
    assert result.dtype == np.float32
    assert result.mean() == pytest.approx(3, abs=0.05)
    assert result.std() < 0.2
    assert grid_of(result, 7.84) == Grid(SHAPE, 7.84)
