"""Seeds are checked against their tomograms and against each other."""

from __future__ import annotations

import numpy as np

from copick_cryosam.errors import SeedError
from copick_cryosam.types import AngstromPoints, Grid, VoxelPoints

__all__ = ["agreed", "inside"]


def inside(points: AngstromPoints, grid: Grid, run: str, field: str) -> VoxelPoints:
    """The points in voxels of the run's tomogram.

    Raises
    ------
    SeedError
        One lies outside.
    """
    voxels = grid.to_voxels(points)
    outside = ~grid.contains(voxels)
    if outside.any():
        x, y, z = points.xyz[int(np.argmax(outside))]
        size = " x ".join(f"{n * grid.voxel_spacing:g}" for n in reversed(grid.shape_zyx))
        raise SeedError(
            f"run {run}: expected {field} inside {size} Å (x, y, z), found {int(outside.sum())} outside, the first at "
            f"({x:g}, {y:g}, {z:g})",
            hint="Check that they are in Å, in the order x, y, z, and belong to this run",
        )
    return voxels


_CHOOSE_SEEDS = "Choose runs that agree with --seed-runs, or invert the others' tomograms"


def agreed(polarity: dict[str, str], hint: str = _CHOOSE_SEEDS) -> str:
    """The polarity that all runs, by name, have in common.

    Raises
    ------
    SeedError
        They differ; the message names the runs.
    """
    if len(set(polarity.values())) == 1:
        return next(iter(polarity.values()))
    found = "; ".join(
        f"{kind} in {', '.join(run for run, each in polarity.items() if each == kind)}"
        for kind in sorted(set(polarity.values()))
    )
    raise SeedError(
        f"polarity: expected seeds of one kind in all runs, found {found}",
        hint=hint,
    )
