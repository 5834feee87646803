"""The completion record of a run: what was written, from what, with which versions; and what it tells of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from copick_cryosam.types import Grid
from copick_cryosam.versions import versions

_FORMAT = 1
_PACKAGES = ("copick-cryosam", "copick", "copick-utils", "numpy", "scipy", "torch", "zarr")


class OutputState(Enum):
    """What is there of a run's results."""

    ABSENT = "absent"
    INTERRUPTED = "interrupted"
    """A killed run left a part; it is started again."""
    FINISHED = "finished"
    STALE = "stale"
    """Finished, with other parameters than those asked for now."""

    @property
    def done(self) -> bool:
        """Whether the run can be skipped."""
        return self in (OutputState.FINISHED, OutputState.STALE)


def record_of(
    run: str, digests: Mapping[str, str], picks: int, grid: Grid, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """A record, JSON types.

    Parameters
    ----------
    digests : SHA-256 of each output, by its name, in the order of the outputs
    picks : how many there are
    grid : of the tomogram
    parameters : everything that decided the result
    """
    return {
        "format": _FORMAT,
        "run": run,
        "outputs": list(digests),
        "sha256": dict(digests),
        "counts": {"picks": picks},
        "grid": {"shape_zyx": list(grid.shape_zyx), "voxel_spacing": grid.voxel_spacing},
        "parameters": dict(parameters),
        "parameters_sha256": _digest(parameters),
        "versions": {name: found or "not installed" for name, found in versions(_PACKAGES).items()},
    }


def is_known(record: Mapping[str, Any]) -> bool:
    """Whether it is of the format that is written now."""
    return record.get("format") == _FORMAT


def is_of(record: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether it stands for a result of these parameters."""
    return bool(record.get("parameters_sha256") == _digest(parameters))


def outputs_of(content: Mapping[str, Any] | None) -> list[str]:
    """Names of the outputs in a record or marker."""
    names = [] if content is None else content.get("outputs", [])
    return [str(name) for name in names] if isinstance(names, list) else []


def _digest(parameters: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True, allow_nan=False).encode()).hexdigest()
