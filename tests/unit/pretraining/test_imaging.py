"""Tilt series and reconstruction: geometry, signal-to-noise ratio, missing wedge, CTF."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam.pretraining.imaging import Imaging, _operators, contrast_transfer, random_imaging, reconstruct

CLEAN = Imaging(snr=1e8, defocus=0.0, cutoff=1.0, tilt_range=60, tilt_step=3)
"""No noise to speak of and a flat transfer function: only geometry is left."""


def point(shape, at) -> np.ndarray:
    density = np.zeros(shape, dtype=np.float32)
    density[at] = 1
    return density


@pytest.mark.parametrize("tilt", [0.0, 45.0, -45.0, 60.0])
@pytest.mark.parametrize("at", [(20, 30), (5, 22), (28, 35)])
def test_a_point_is_projected_to_where_the_tilt_puts_it(tilt, at):
    depth, width = 33, 65
    project, back = _operators(depth, width, (tilt,))
    image = project @ point((depth, width), at).reshape(-1)
    angle = np.deg2rad(tilt)
    z, x = at[0] - (depth - 1) / 2, at[1] - (width - 1) / 2
    expected = x * np.cos(angle) + z * np.sin(angle) + (width - 1) / 2
    assert (image * np.arange(width)).sum() / image.sum() == pytest.approx(expected, abs=0.5)
    # back-projection smears the pixel along the ray through the point
    smeared = (back @ np.eye(width, dtype=np.float32)[round(expected)]).reshape(depth, width)
    assert smeared[at] > 0.4


def test_projection_keeps_the_mass_of_a_broad_object():
    depth, width = 33, 97
    z, x = np.meshgrid(np.arange(depth) - 16, np.arange(width) - 48, indexing="ij")
    blob = np.exp(-(z**2 + x**2) / 32).astype(np.float32)
    project, _ = _operators(depth, width, (0.0, 45.0, -60.0))
    masses = (project @ blob.reshape(-1)).reshape(3, width).sum(axis=1)
    np.testing.assert_allclose(masses, blob.sum(), rtol=0.02)


@pytest.mark.parametrize("at", [(12, 10, 32), (6, 20, 40), (19, 5, 22)])
def test_the_reconstruction_peaks_at_the_point(at):
    volume = reconstruct(point((25, 26, 64), at), CLEAN, np.random.default_rng(0))
    assert np.unravel_index(volume.argmax(), volume.shape) == at
    assert volume.max() > 20


def test_the_volume_is_standardised_and_reproducible():
    density = point((17, 20, 48), (8, 10, 24))
    one, same, other = (reconstruct(density, Imaging(snr=0.1), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.dtype == np.float32
    assert one.shape == density.shape
    assert one.mean() == pytest.approx(0, abs=1e-4)
    assert one.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("snr", [0.05, 0.5, 2.0])
def test_the_signal_to_noise_ratio_is_that_of_the_untilted_image(snr):
    """Of two reconstructions of one untilted image, the correlation is SNR / (1 + SNR), the filter undone."""
    rng = np.random.default_rng(0)
    density = np.clip(rng.standard_normal((1, 160, 256)), 0, 1).astype(np.float32)
    imaging = Imaging(snr=snr, tilt_range=0.0, cutoff=1.0, defocus=20000.0)
    ramp = np.maximum(np.abs(np.fft.fftfreq(256)) * 2, 2 / 256)[:, None]
    images = []
    for seed in (1, 2):
        tomogram = reconstruct(density, imaging, np.random.default_rng(seed))[0].T
        images.append(np.fft.irfft2(np.fft.rfft2(tomogram) / ramp, s=tomogram.shape).ravel())
    correlation = np.corrcoef(*images)[0, 1]
    assert correlation / (1 - correlation) == pytest.approx(snr, rel=0.1)


def test_gold_does_not_count_as_signal():
    """A bead of density 8 must not make the noise on everything else larger than without it."""
    rng = np.random.default_rng(0)
    density = (rng.random((9, 40, 64)) < 0.05).astype(np.float32)
    gold = density.copy()
    gold[4:7, 4:7, 4:7] = 8
    imaging = Imaging(snr=1.0, tilt_range=0.0, cutoff=1.0, defocus=0.0)
    clean = reconstruct(density, CLEAN, np.random.default_rng(1))
    plain, beaded = (reconstruct(d, imaging, np.random.default_rng(1)) for d in (density, gold))
    away = np.s_[:, 15:, 20:-8]
    similar = [np.corrcoef(clean[away].ravel(), v[away].ravel())[0, 1] for v in (plain, beaded)]
    assert similar[1] > 0.8 * similar[0]


@pytest.mark.parametrize("tilt_range", [45.0, 60.0])
def test_the_wedge_beyond_the_tilt_range_is_empty(tilt_range):
    rng = np.random.default_rng(0)
    density = np.zeros((48, 8, 128), dtype=np.float32)
    density[12:36, :, 50:78] = rng.random((24, 8, 28))
    imaging = Imaging(snr=1e6, defocus=0.0, cutoff=1.0, tilt_range=tilt_range, tilt_step=1.0)
    volume = reconstruct(density, imaging, rng)
    # taken where all tilts see the specimen, and tapered, so that edges do not leak into the wedge
    block = volume[:, :, 40:88] * np.hanning(48)[:, None, None] * np.hanning(48)
    power = (np.abs(np.fft.fftn(block)) ** 2).sum(axis=1)
    kz, kx = np.meshgrid(np.fft.fftfreq(48), np.fft.fftfreq(48), indexing="ij")
    tilt, radius = np.rad2deg(np.arctan2(np.abs(kz), np.abs(kx))), np.hypot(kz, kx)
    ring = (radius > 0.1) & (radius < 0.35)
    wedge, seen = ring & (tilt > tilt_range + 10), ring & (tilt < tilt_range - 10)
    assert power[wedge].mean() < 0.05 * power[seen].mean()


def test_the_transfer_function():
    imaging = Imaging(voxel_spacing=10.0, defocus=30000.0, amplitude_contrast=0.1)
    transfer = contrast_transfer((128, 96), imaging)
    assert transfer.shape == (128, 49)
    assert transfer[0, 0] == pytest.approx(0.1, abs=1e-6)
    assert np.abs(transfer).max() <= 1
    # first zero of sin(pi lambda defocus k^2 + arcsin 0.1)
    frequency = np.sqrt((np.pi - np.arcsin(0.1)) / (np.pi * 0.0197 * 30000))
    row = np.fft.rfftfreq(96, 10.0)
    crossing = row[np.flatnonzero(transfer[0] < 0)[0]]
    assert abs(crossing - frequency) <= row[1]
    # the same on both axes
    column = np.interp(row[:40], np.fft.fftfreq(128, 10.0)[:64], transfer[:64, 0])
    np.testing.assert_allclose(column, transfer[0, :40], atol=0.05)


def test_phase_flipping_and_low_pass_change_the_look_as_they_should():
    rng = np.random.default_rng(0)
    density = np.clip(rng.standard_normal((16, 24, 64)), 0, 1).astype(np.float32)
    base = {"snr": 1e6, "defocus": 50000.0}
    plain, flipped, soft = (
        reconstruct(density, Imaging(**base, **extra), np.random.default_rng(0))
        for extra in ({}, {"phase_flip": True}, {"low_pass": 40.0})
    )
    inner = np.s_[:, :, 20:-20]
    assert (
        np.corrcoef(flipped[inner].ravel(), density[inner].ravel())[0, 1]
        > np.corrcoef(plain[inner].ravel(), density[inner].ravel())[0, 1]
    )
    fast = [np.abs(np.diff(v[inner], axis=1)).mean() for v in (plain, soft)]
    assert fast[1] < 0.6 * fast[0]


def test_random_conditions_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    drawn = [random_imaging(rng, voxel_spacing=12.0) for _ in range(200)]
    assert all(40 <= one.tilt_range <= 70 and one.voxel_spacing == 12.0 for one in drawn)
    assert all(0.025 <= one.snr <= 0.5 and 10000 <= one.defocus <= 60000 for one in drawn)
    assert {one.phase_flip for one in drawn} == {True, False}
    assert random_imaging(np.random.default_rng(3)) == random_imaging(np.random.default_rng(3))
