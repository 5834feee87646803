"""Making a small copick project on disk from arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import OutputError
from copick_cryosam.io.job import PicksUri
from copick_cryosam.io.storage import reason
from copick_cryosam.types import Grid, VoxelPoints

__all__ = ["CONFIG", "DATA", "NewObject", "add_picks", "add_tomogram", "create_project"]

CONFIG = "config.json"
"""Name of the configuration in the project's folder."""
DATA = "project"
"""Name of the folder beside it that holds the runs."""


@dataclass(frozen=True, kw_only=True)
class NewObject:
    """A particle of a new project; `radius` in Å, `color` red, green, blue, alpha from 0 to 255."""

    name: str
    radius: float
    color: tuple[int, int, int, int]


def create_project(folder: Path, name: str, objects: Sequence[NewObject]) -> Path:
    """Write the configuration of a project without runs and return its path.

    The runs lie beside it, and everything in them can be changed. The configuration holds absolute paths, as
    copick resolves others from wherever a command is started.

    Parameters
    ----------
    folder : made where it is missing
    objects : labelled 1, 2, ... in this order

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    data = (folder / DATA).resolve()
    content = {
        "config_type": "filesystem",
        "name": name,
        "description": "Simulated tomograms",
        "version": "1.0.0",
        "pickable_objects": [
            {
                "name": each.name,
                "is_particle": True,
                "label": label,
                "color": list(each.color),
                "radius": each.radius,
            }
            for label, each in enumerate(objects, start=1)
        ],
        "overlay_root": f"local://{data.as_posix()}",
        "overlay_fs_args": {"auto_mkdir": True},
    }
    config = folder / CONFIG
    try:
        data.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"folder {folder}: expected a place that can be written, found: {reason(error)}",
            hint="Choose another folder",
        ) from None
    return config


def add_tomogram(config: Path, run: str, tomo_type: str, volume: NDArray[np.float32], voxel_spacing: float) -> None:
    """Add a tomogram and its pyramid to a run, which is made where it is missing.

    Parameters
    ----------
    volume : shape (Z, Y, X)
    voxel_spacing : Å

    Raises
    ------
    OutputError
        The storage fails.
    """
    import copick

    try:
        place = copick.from_file(str(config)).new_run(run, exist_ok=True)
        place.new_voxel_spacing(voxel_spacing, exist_ok=True).new_tomogram(tomo_type).from_numpy(volume)
    except OSError as error:
        raise _failed(config, run, error) from None


def add_picks(config: Path, run: str, to: PicksUri, points: VoxelPoints, grid: Grid) -> None:
    """Add picks without scores to a run.

    Raises
    ------
    OutputError
        The storage fails.
    """
    import copick

    try:
        place = copick.from_file(str(config)).new_run(run, exist_ok=True)
        picks = place.new_picks(to.object_name, to.session_id, to.user_id)
        # Storing picks that were never loaded would erase the run's name otherwise.
        picks.meta.run_name = run
        picks.meta.voxel_spacing = grid.voxel_spacing
        picks.meta.trust_orientation = False
        picks.from_numpy(grid.to_angstrom(points).xyz)
    except OSError as error:
        raise _failed(config, run, error) from None


def _failed(config: Path, run: str, error: OSError) -> OutputError:
    return OutputError(
        f"project {config}, run {run}: expected storage that can be written, found: {reason(error)}",
        hint="Check the space on the disk",
    )
