"""The demo's project: tomograms of two invented complexes, the truth, and one labelled particle of each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import OutputError
from copick_cryosam.io.creating import CONFIG, DATA, NewObject, add_picks, add_tomogram, create_project
from copick_cryosam.io.job import PicksUri
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.shapes import Shape, random_shape
from copick_cryosam.pretraining.simulate import Scene, centres_inside, simulate
from copick_cryosam.types import Grid, VoxelPoints

__all__ = ["FULL", "OBJECTS", "SEED", "TOMOGRAM", "TRUTH", "DemoObject", "DemoScene", "prepare", "report_name"]

TOMO_TYPE = "wbp"
VOXEL_SPACING = 10.0
TOMOGRAM = f"{TOMO_TYPE}@{VOXEL_SPACING}"

TRUTH = ("truth", "0")
"""User and session; session 0 is copick's sign for what a tool wrote and nobody should edit."""
SEED = ("curator", "1")

MARKER = ".copick-cryosam-demo"
"""Tells a demo's folder from any other; only such a folder is ever emptied."""


@dataclass(frozen=True, kw_only=True)
class DemoObject:
    """An invented complex: `draw` decides which of the endless shapes of a family, `radius` is in voxels."""

    name: str
    family: str
    draw: int
    radius: float
    color: tuple[int, int, int, int]

    def shape(self) -> Shape:
        """Its density."""
        return random_shape(np.random.default_rng(self.draw), family=self.family, radius=self.radius, name=self.name)


OBJECTS = (
    # The embedded models have never seen a shape of this family.
    DemoObject(name="chaperone", family="capped", draw=4, radius=9.0, color=(0, 158, 115, 255)),
    DemoObject(name="enzyme", family="assembly", draw=3, radius=6.5, color=(230, 159, 0, 255)),
)


@dataclass(frozen=True, kw_only=True)
class DemoScene:
    """What the tomograms show.

    Attributes
    ----------
    shape_zyx : voxels
    counts : how many of each of `OBJECTS` to try to place in a tomogram
    runs : names
    """

    shape_zyx: tuple[int, int, int] = (64, 192, 192)
    counts: tuple[int, int] = (20, 36)
    runs: tuple[str, ...] = ("TS_001", "TS_002", "TS_003")

    def imaging(self) -> Imaging:
        """±60 degrees, 3 µm underfocus, a tenth as much signal as noise in an untilted image."""
        return Imaging(voxel_spacing=VOXEL_SPACING, tilt_range=60.0, defocus=30000.0, snr=0.1, phase_flip=True)


FULL = DemoScene()


def report_name(object_name: str) -> str:
    """File name of the report on an object."""
    return "report.html" if object_name == OBJECTS[0].name else f"report-{object_name}.html"


def prepare(
    folder: Path, scene: DemoScene = FULL, *, anew: bool = False, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Make the demo's project in `folder` and return its configuration; a complete one of this scene is kept.

    Parameters
    ----------
    anew : replace a project that is there, with everything in it
    progress : called with the tomograms simulated so far and all

    Raises
    ------
    OutputError
        The folder holds files that are not the demo's, or cannot be written.
    """
    _refuse_foreign(folder)
    config, marker = folder / CONFIG, folder / MARKER
    digest = hashlib.sha256(repr((scene, OBJECTS, scene.imaging())).encode()).hexdigest()
    if not anew and _digest_in(marker) == digest:
        return config
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The marker comes first, so that a killed demo can be started again; its digest comes last.
        marker.write_text("{}\n", encoding="utf-8")
        for name in (CONFIG, *(report_name(each.name) for each in OBJECTS)):
            (folder / name).unlink(missing_ok=True)
        if (folder / DATA).exists():
            shutil.rmtree(folder / DATA)
    except OSError as error:
        raise OutputError(
            f"folder {folder}: expected a place that can be written, found: {error.strerror}",
            hint="Choose another with --folder",
        ) from None
    _fill(folder, scene, progress)
    marker.write_text(json.dumps({"scene": digest}) + "\n", encoding="utf-8")
    return config


def _fill(folder: Path, scene: DemoScene, progress: Callable[[int, int], None] | None) -> None:
    shapes = [each.shape() for each in OBJECTS]
    grid = Grid(scene.shape_zyx, VOXEL_SPACING)
    objects = [
        NewObject(name=each.name, radius=round(shape.radius * VOXEL_SPACING), color=each.color)
        for each, shape in zip(OBJECTS, shapes, strict=True)
    ]
    config = create_project(folder, "CryoSAM demo", objects)
    contents = Scene(shape_zyx=scene.shape_zyx, counts=scene.counts, membranes=2, filaments=1, beads=2)
    for number, run in enumerate(scene.runs):
        if progress is not None:
            progress(number, len(scene.runs))
        volume, specimen = simulate(contents, shapes, scene.imaging(), np.random.default_rng(number))
        # Protein is darker than ice in tomograms as most programs write them.
        add_tomogram(config, run, TOMO_TYPE, -volume, VOXEL_SPACING)
        for kind, each in enumerate(OBJECTS):
            centres = centres_inside(specimen, kind)
            add_picks(config, run, PicksUri(each.name, *TRUTH), VoxelPoints(centres), grid)
            if number == 0:
                seed = _clicked(centres, scene.shape_zyx)
                add_picks(config, run, PicksUri(each.name, *SEED), VoxelPoints(seed), grid)
    if progress is not None:
        progress(len(scene.runs), len(scene.runs))


def _clicked(centres: NDArray[np.float64], shape_zyx: tuple[int, int, int]) -> NDArray[np.float64]:
    """One particle near the middle, a voxel beside its centre along each axis, as nobody clicks exactly."""
    middle = (np.array(shape_zyx) - 1) / 2
    nearest = int(np.argmin(np.linalg.norm(centres - middle, axis=1)))
    return np.asarray(np.round(centres[nearest]) + np.array([1.0, -1.0, 1.0]))


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"folder {folder}: expected a folder, found a file", hint="Choose another with --folder")
    there = {path.name for path in folder.iterdir()}
    own = {MARKER, CONFIG, DATA, *(report_name(each.name) for each in OBJECTS)}
    foreign = sorted(there - own if MARKER in there else there)
    if foreign:
        raise OutputError(
            f"folder {folder}: expected nothing but the demo's own files, found {', '.join(foreign[:4])}",
            hint="Choose another with --folder, or move them away",
        )


def _digest_in(marker: Path) -> str | None:
    """The scene that was completed; None where none was."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content.get("scene") if isinstance(content, dict) else None
