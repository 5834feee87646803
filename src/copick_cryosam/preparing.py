"""A tomogram as the nets know it: checked, standardised, particles bright."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.config import Polarity
from copick_cryosam.contrast import brighten, check, decide_polarity, standardise
from copick_cryosam.encoders import Encoder
from copick_cryosam.errors import InputError, SeedError
from copick_cryosam.polarity import foreground_both_ways
from copick_cryosam.types import Grid, VoxelPoints


def prepare(
    volume: NDArray[np.float32],
    seeds: VoxelPoints | None,
    radius_vox: float,
    polarity: str | None,
    asked: Polarity,
    encoder: Encoder,
    voxel_spacing: float | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Standardise a tomogram and turn its particles bright.

    Parameters
    ----------
    volume : shape (Z, Y, X), any float unit
    seeds : voxels, from which the polarity is decided; None where `polarity` is known
    polarity : how particles look, dark or light, as decided in another tomogram; None: decided here
    asked : what the settings say of it
    encoder, voxel_spacing : see `polarity.foreground_both_ways`

    Returns
    -------
    float32 of the same shape, and how particles looked before.

    Raises
    ------
    DataError, SeedError, InputError
        The volume cannot be used, the seeds lie outside, or the radius is impossible.
    """
    if not (np.isfinite(radius_vox) and 1 <= radius_vox <= 200):
        raise InputError(
            f"radius: expected 1 to 200 voxels, found {radius_vox:g}",
            hint="Check the object's radius (Å in copick, voxels in Python) and the voxel spacing",
        )
    check(volume)
    prepared = standardise(volume)
    if polarity is None:
        if seeds is None:
            raise ValueError("polarity: expected seeds or a decision, found neither")
        _check_seeds(seeds, prepared.shape)
        recognised = partial(foreground_both_ways, prepared, seeds, radius_vox, encoder, voxel_spacing)
        polarity = decide_polarity(prepared, seeds, radius_vox, asked, recognised)
    return brighten(prepared, "dark" if polarity == "dark" else "light"), polarity


def _check_seeds(seeds: VoxelPoints, shape: tuple[int, ...]) -> None:
    if len(seeds) == 0:
        raise SeedError("seeds: expected at least one, found none", hint="Give the position of one particle")
    z, y, x = shape
    inside = Grid((z, y, x), 1.0).contains(seeds)
    if not inside.all():
        first = seeds.zyx[int(np.argmin(inside))]
        raise SeedError(
            f"seeds: expected voxels (z, y, x) inside {tuple(shape)}, found {int((~inside).sum())} outside, "
            f"the first at ({first[0]:.0f}, {first[1]:.0f}, {first[2]:.0f})",
            hint="Check the axis order (z, y, x in voxels; x, y, z in Å) and the voxel spacing",
        )
