"""From a density to a tomogram: tilt series with CTF and shot noise, weighted back-projection.

The tilt axis is y. A tilt image is a sum over z planes, each shifted in x by its height times the
tangent of the tilt; as the same shift applies to every y, projection and back-projection are one
sparse matrix each, multiplied with the volume laid out as (z x, y). Missing wedge, fringes and the
colour of the noise are then those of a real reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

ELECTRON_WAVELENGTH = 0.0197
"""Å at 300 kV."""


@dataclass(frozen=True, kw_only=True)
class Imaging:
    """How a tilt series is taken and reconstructed.

    Attributes
    ----------
    voxel_spacing : Å
    tilt_range : degrees, the series covers -tilt_range to +tilt_range
    tilt_step : degrees
    defocus : Å, positive is underfocus
    amplitude_contrast : 0 to 1
    snr : variance of the signal over variance of the noise in the untilted image
    phase_flip : correct the CTF's sign before reconstruction
    cutoff : fraction of Nyquist beyond which the ramp filter falls off
    low_pass : width in Å (two standard deviations) of a Gaussian applied to the tomogram, 0 for none
    """

    voxel_spacing: float = 10.0
    tilt_range: float = 60.0
    tilt_step: float = 3.0
    defocus: float = 30000.0
    amplitude_contrast: float = 0.1
    snr: float = 0.1
    phase_flip: bool = False
    cutoff: float = 0.8
    low_pass: float = 0.0


def random_imaging(rng: np.random.Generator, *, voxel_spacing: float = 10.0) -> Imaging:
    """Imaging conditions as they vary between real data sets."""
    return Imaging(
        voxel_spacing=voxel_spacing,
        tilt_range=float(rng.uniform(40, 70)),
        tilt_step=float(rng.choice([2.0, 3.0, 4.0])),
        defocus=float(rng.uniform(10000, 60000)),
        amplitude_contrast=float(rng.uniform(0.07, 0.2)),
        snr=float(np.exp(rng.uniform(np.log(0.025), np.log(0.5)))),
        phase_flip=bool(rng.random() < 0.5),
        cutoff=float(rng.uniform(0.4, 1.0)),
        low_pass=float(rng.choice([0.0, 0.0, rng.uniform(10, 40)])),
    )


@lru_cache(maxsize=2)
def _operators(depth: int, width: int, tilts: tuple[float, ...]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Projection, shape (tilts * width, depth * width), and back-projection, its counterpart."""
    z, x = np.meshgrid(np.arange(depth) - (depth - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    forward, backward = [], []
    volume_index = np.arange(depth * width).reshape(depth, width)
    for tilt in np.deg2rad(np.array(tilts)):
        # along a ray that hits the detector at u, plane z is met at x = (u - z sin) / cos
        met = (x - z * np.sin(tilt)) / np.cos(tilt) + (width - 1) / 2
        forward.append(_interpolation(met.ravel(), np.tile(np.arange(width), depth), z.size, width, depth, tilt))
        seen = x * np.cos(tilt) + z * np.sin(tilt) + (width - 1) / 2
        low = np.floor(seen).astype(int)
        part = (seen - low).astype(np.float32)
        rows = np.concatenate([volume_index.ravel()] * 2)
        cols = np.concatenate([low.ravel(), low.ravel() + 1])
        values = np.concatenate([1 - part.ravel(), part.ravel()])
        inside = (cols >= 0) & (cols < width)
        backward.append(sparse.csr_matrix((values[inside], (rows[inside], cols[inside])), shape=(depth * width, width)))
    return sparse.vstack(forward, format="csr"), sparse.hstack(backward, format="csr")


def _interpolation(
    met: NDArray[np.float64], detector: NDArray[np.int64], size: int, width: int, depth: int, tilt: float
) -> sparse.csr_matrix:
    """Rows are detector pixels, columns voxels of (z, x); linear in x, the path length per plane is 1 / cos."""
    plane = np.repeat(np.arange(depth), width)
    low = np.floor(met).astype(int)
    part = met - low
    rows = np.concatenate([detector, detector])
    cols = np.concatenate([low, low + 1])
    values = np.concatenate([1 - part, part]) / np.cos(tilt)
    inside = (cols >= 0) & (cols < width)
    flat = np.concatenate([plane, plane]) * width + cols
    return sparse.csr_matrix((values[inside].astype(np.float32), (rows[inside], flat[inside])), shape=(width, size))


def contrast_transfer(shape: tuple[int, int], imaging: Imaging) -> NDArray[np.float32]:
    """CTF on the half-plane of `rfft2`, shape (rows, columns // 2 + 1); positive at low frequency."""
    fy = np.fft.fftfreq(shape[0], imaging.voxel_spacing)[:, None]
    fx = np.fft.rfftfreq(shape[1], imaging.voxel_spacing)[None]
    phase = np.pi * ELECTRON_WAVELENGTH * imaging.defocus * (fy**2 + fx**2)
    return np.asarray(np.sin(phase + np.arcsin(imaging.amplitude_contrast)), dtype=np.float32)


def reconstruct(density: NDArray[np.float32], imaging: Imaging, rng: np.random.Generator) -> NDArray[np.float32]:
    """The tomogram of `density`: standardised, particles brighter than the solvent.

    Parameters
    ----------
    density : shape (Z, Y, X), 0 in solvent

    Returns
    -------
    float32, the shape of `density`, mean 0, standard deviation 1. At the edges in x the series sees less
    of the specimen, as everything beyond the volume is empty: simulate with a margin and cut it off.
    """
    depth, rows, width = density.shape
    tilts = tuple(float(t) for t in np.arange(-imaging.tilt_range, imaging.tilt_range + 1e-3, imaging.tilt_step))
    project, back = _operators(depth, width, tilts)
    laid_out = np.ascontiguousarray(density.transpose(0, 2, 1)).reshape(depth * width, rows)
    images = (project @ laid_out).reshape(len(tilts), width, rows)
    transfer = contrast_transfer((width, rows), imaging)
    spectra = np.fft.rfft2(images, axes=(1, 2)) * transfer
    images = np.fft.irfft2(spectra, s=(width, rows), axes=(1, 2)).astype(np.float32)
    spread = _signal_spread(density, transfer) / np.sqrt(imaging.snr)
    images += rng.normal(size=images.shape).astype(np.float32) * spread
    ramp = np.abs(np.fft.fftfreq(width))[:, None].astype(np.float32) * 2
    fall = np.exp(-0.5 * np.clip((ramp - imaging.cutoff) / 0.12, 0, None) ** 2)
    weight = np.maximum(ramp, 2.0 / width) * fall
    spectra = np.fft.rfft2(images, axes=(1, 2)) * weight
    if imaging.phase_flip:
        spectra *= np.sign(transfer)
    images = np.fft.irfft2(spectra, s=(width, rows), axes=(1, 2)).astype(np.float32)
    volume = (back @ images.reshape(len(tilts) * width, rows)).reshape(depth, width, rows).transpose(0, 2, 1)
    if imaging.low_pass > 0:
        volume = _low_passed(volume, imaging.low_pass / imaging.voxel_spacing)
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    volume -= volume.mean()
    return np.asarray(volume / volume.std(), dtype=np.float32)


def _signal_spread(density: NDArray[np.float32], transfer: NDArray[np.float32]) -> float:
    """Standard deviation of the untilted image of protein and lipid; gold would drown what the SNR is about."""
    image = np.minimum(density, 1.2).sum(axis=0).T
    return float(np.fft.irfft2(np.fft.rfft2(image) * transfer, s=image.shape).std())


def _low_passed(volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(volume, sigma / 2), dtype=np.float32)
