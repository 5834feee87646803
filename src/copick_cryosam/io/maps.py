"""Subtomogram averages as MRC files, with their half maps and Fourier shell correlation beside them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.io.storage import reason

if TYPE_CHECKING:
    from copick_cryosam.averaging import Average

__all__ = ["check_maps", "map_paths", "write_maps"]


def map_paths(path: str | Path) -> tuple[Path, Path, Path, Path]:
    """The map itself, its two half maps and its FSC (JSON), from the map's path."""
    path = Path(path)
    return (
        path,
        path.with_name(f"{path.stem}_half1.mrc"),
        path.with_name(f"{path.stem}_half2.mrc"),
        path.with_name(f"{path.stem}_fsc.json"),
    )


def write_maps(average: Average, path: str | Path, *, overwrite: bool = False) -> tuple[Path, Path, Path, Path]:
    """Write an average, its halves and its FSC, see `map_paths`; all are complete before the first gets its name.

    The headers carry the voxel spacing in Å; columns, rows and sections are x, y and z.

    Raises
    ------
    InputError
        A path that does not end in .mrc.
    OutputError
        One of the files exists and `overwrite` is not given, there is no such folder, or it cannot be written.
    """
    check_maps(path, overwrite=overwrite)
    paths = map_paths(path)
    parts = [each.with_name(f".{each.name}.{os.getpid()}.part") for each in paths]
    try:
        for part, density in zip(parts, (average.density, *average.halves), strict=False):
            _write_mrc(part, density, average.voxel_spacing)
        parts[3].write_text(json.dumps(_content(average), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for part, whole in zip(parts, paths, strict=True):
            os.replace(part, whole)
    except OSError as error:
        raise OutputError(
            f"map {path}: expected a place that can be written, found: {reason(error)}", hint="Choose another path"
        ) from None
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return paths


def check_maps(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse now what `write_maps` would refuse after the work; its errors."""
    if Path(path).suffix != ".mrc":
        raise InputError(f"map: expected a name that ends in .mrc, found {str(path)!r}", hint="Add the ending")
    paths = map_paths(path)
    if not paths[0].parent.is_dir():
        raise OutputError(
            f"map {path}: expected the folder {paths[0].parent}, found none", hint="Make it, or choose another path"
        )
    there = [str(each) for each in paths if each.exists()]
    if there and not overwrite:
        raise OutputError(
            f"map {path}: expected nothing there, found {', '.join(there)}", hint="Choose another path, or --overwrite"
        )


def _write_mrc(path: Path, density: NDArray[np.float32], voxel_spacing: float) -> None:
    import mrcfile

    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(density, dtype=np.float32))
        file.voxel_size = voxel_spacing


def _content(average: Average) -> dict[str, Any]:
    """What the JSON holds; null where there is no figure."""

    def finite(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "count": average.count,
        "voxel_spacing": average.voxel_spacing,
        "resolution_0143": finite(average.resolution_0143),
        "resolution_05": finite(average.resolution_05),
        "frequencies": [float(value) for value in average.frequencies],
        "fsc": [finite(value) for value in average.fsc],
        "note": "halves aligned to one template: the correlation is biased towards agreement",
    }
