"""Brings a tomogram to the form that encoders and segmenters expect: standardised, particles bright."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.config import Polarity
from copick_cryosam.errors import DataError, SeedError
from copick_cryosam.types import Grid, VoxelPoints

MIN_SIDE = 16
"""Voxels; a smaller volume has no room for a particle and its surroundings."""
_SAMPLE = 2_000_000
_CLEAR = 4.0
"""Standard errors by which inside and shell differ where the contrast alone decides."""
_DECISION = 3.0
"""Standard errors by which they must differ at least where nothing else tells."""
_RECOGNISED, _TIMES = 0.15, 1.3
"""Foreground at the seeds that an encoder must see in one polarity, and how many times more than in the other."""


def check(volume: NDArray[np.float32]) -> None:
    """Refuse volumes in which nothing can be found.

    Raises
    ------
    DataError
        Not three axes, a side under 16 voxels, NaN or infinite voxels, or a constant volume.
    """
    if volume.ndim != 3:
        raise DataError(f"volume: expected 3 axes (z, y, x), found {volume.ndim}", hint="Give one tomogram")
    if min(volume.shape) < MIN_SIDE:
        raise DataError(
            f"volume: expected at least {MIN_SIDE} voxels a side, found {volume.shape}",
            hint="Choose a tomogram with a smaller voxel spacing or a larger field of view",
        )
    with np.errstate(invalid="ignore"):  # infinities of both signs add up to NaN, which is told below
        total = float(volume.sum(dtype=np.float64))
    if not np.isfinite(total):
        bad = int(np.count_nonzero(~np.isfinite(volume)))
        raise DataError(
            f"volume: expected finite voxels, found {bad} NaN or infinite", hint="Write the tomogram again without NaN"
        )
    if volume.min() == volume.max():
        raise DataError(
            f"volume: expected contrast, found the constant {volume.flat[0]:g}",
            hint="Check that the tomogram was written completely",
        )


def standardise(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and standard deviation 1 of the bulk; gold and artefacts are clipped to it.

    Clips to the 0.1 and 99.9 percentiles before mean and deviation are taken, so that a few gold
    beads do not flatten the protein.

    Parameters
    ----------
    volume : shape (Z, Y, X), any float unit

    Returns
    -------
    float32, same shape; a new array.
    """
    step = max(1, round((volume.size / _SAMPLE) ** (1 / 3)))
    sample = volume[::step, ::step, ::step]
    low, high = np.percentile(sample, [0.1, 99.9])
    clipped = np.clip(sample, low, high)
    mean, deviation = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
    if deviation == 0:  # all contrast lies in fewer than 0.2% of the voxels
        mean, deviation = float(volume.mean(dtype=np.float64)), float(volume.std(dtype=np.float64))
        low, high = float(volume.min()), float(volume.max())
    # float32 limits: float64 ones would make a float64 copy of the whole tomogram
    result = np.clip(volume, np.float32(low), np.float32(high)).astype(np.float32, copy=False)
    result -= np.float32(mean)
    result /= np.float32(deviation)
    return result


def seed_contrast(volume: NDArray[np.float32], seeds: VoxelPoints, radius_vox: float) -> tuple[float, float]:
    """How much brighter the seeds are than their surroundings, and the standard error of that.

    Inside is within the object's radius, the shell between 1.2 and 1.8 radii. Stated radii are never exact, and
    a hollow object seen with too small a one has its wall in the shell: so this is done with the radius as it is,
    10% and 30% larger, and the clearest answer counts. The seeds weigh alike. The standard error comes from the
    same measure at random places of the volume, so that coloured noise and crowding are part of it.

    Parameters
    ----------
    volume : standardised, shape (Z, Y, X)
    """
    answers = [_contrast(volume, seeds, factor * radius_vox) for factor in (1.0, 1.1, 1.3)]
    return max(answers, key=lambda answer: abs(answer[0]) / answer[1])


def _contrast(volume: NDArray[np.float32], seeds: VoxelPoints, radius_vox: float) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    found = _contrasts(volume, seeds.zyx, radius_vox)
    margin = np.minimum(np.array(volume.shape) / 2 - 0.5, radius_vox)
    places = rng.uniform(margin, np.array(volume.shape) - 1 - margin, size=(64, 3))
    scatter = _contrasts(volume, places, radius_vox)
    spread = float(1.4826 * np.median(np.abs(scatter - np.median(scatter))))
    return float(found.mean() - np.median(scatter)), max(spread, 1e-6) / np.sqrt(len(found))


def _contrasts(volume: NDArray[np.float32], centres: NDArray[np.float64], radius_vox: float) -> NDArray[np.float64]:
    half = int(np.ceil(1.8 * radius_vox))
    values = []
    for centre in centres:
        start = np.maximum(np.round(centre).astype(int) - half, 0)
        stop = np.minimum(np.round(centre).astype(int) + half + 1, volume.shape)
        box = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        axes = [np.arange(a, b) - c for a, b, c in zip(start, stop, centre, strict=True)]
        distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2) / radius_vox
        inside, shell = distance <= 1, (distance > 1.2) & (distance <= 1.8)
        if inside.any() and shell.any():
            values.append(float(box[inside].mean() - box[shell].mean()))
    return np.array(values or [0.0])


def decide_polarity(
    volume: NDArray[np.float32],
    seeds: VoxelPoints,
    radius_vox: float,
    told: Polarity,
    recognised: Callable[[], tuple[float, float] | None] | None = None,
) -> Literal["dark", "light"]:
    """Whether particles are darker or brighter than their surroundings.

    Decided from the seeds unless told: by their contrast where it is clear, else by what an encoder recognises,
    else by the contrast alone. Being told the opposite of what the seeds clearly show is an error: every
    result would be nonsense.

    Parameters
    ----------
    volume : standardised, shape (Z, Y, X)
    recognised : asks an encoder for the foreground at the seeds, the volume taken as bright and as dark
        (see `polarity.foreground_both_ways`); asked only where the contrast is not clear

    Raises
    ------
    SeedError
        The seeds contradict `told`, or show nothing and nothing was told.
    """
    return judge_polarity(seed_contrast(volume, seeds, radius_vox), told, recognised)


def judge_polarity(
    evidence: tuple[float, float],
    told: Polarity,
    recognised: Callable[[], tuple[float, float] | None] | None = None,
) -> Literal["dark", "light"]:
    """The same from a contrast and its standard error, as of `seed_contrast`; errors and `recognised` as there."""
    contrast, error = evidence
    seen: Literal["dark", "light"] = "light" if contrast > 0 else "dark"
    strength = abs(contrast) / error
    if told != "auto":
        if told != seen and strength > _CLEAR:
            found = {"dark": "darker", "light": "brighter"}[seen]
            raise SeedError(
                f"polarity: expected {told} particles, found the seeds {found} than their surroundings "
                f"({contrast:+.2f} standard deviations, error {error:.2f})",
                hint=f"Use --polarity {seen} or --polarity auto",
            )
        return told
    if strength > _CLEAR:
        return seen
    shares = None if recognised is None else recognised()
    if shares is not None and max(shares) > _RECOGNISED and max(shares) > _TIMES * min(shares):
        return "light" if shares[0] > shares[1] else "dark"
    if strength < _DECISION:
        raise SeedError(
            f"polarity: the seeds are neither darker nor brighter than their surroundings "
            f"({contrast:+.2f} standard deviations, error {error:.2f})",
            hint="Check the seeds and the object's radius, or say --polarity dark or --polarity light",
        )
    return seen


def brighten(volume: NDArray[np.float32], polarity: Literal["dark", "light"]) -> NDArray[np.float32]:
    """The volume with particles brighter than their surroundings; in place for dark ones."""
    if polarity == "dark":
        np.negative(volume, out=volume)
    return volume


def smooth(volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian smoothing, sigma in voxels; float32."""
    return np.asarray(ndimage.gaussian_filter(volume, sigma, output=np.float32))


def grid_of(volume: NDArray[np.float32], voxel_spacing: float) -> Grid:
    """The grid of an array."""
    z, y, x = volume.shape
    return Grid((z, y, x), voxel_spacing)
