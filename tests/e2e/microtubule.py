"""Figures on a real tomogram: a microtubule, picked from one seed on its axis, at six places in turn.

    python tests/e2e/microtubule.py [--no-second-look] [--figure FILE.png]

The data (36 x 206 x 94 voxels of 1.052 nm, bright protein, two gold beads, a clear missing wedge) lie beside the
checkout, in ../shared/data. The axis is known at three points; the wall is the tube 8 to 14 nm around it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.baseline import pick_blobs
from copick_cryosam.compute import Listener, Outcome, Summary, run_job
from copick_cryosam.config import Settings, override, preset
from copick_cryosam.contrast import standardise
from copick_cryosam.io.creating import NewObject, add_picks, add_tomogram, create_project
from copick_cryosam.io.job import Job, PicksUri
from copick_cryosam.types import Grid, Instance, VoxelPoints, paint

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "real" / "13pf_MT.tif"
VOXEL_NM = 1.052
AXIS_NM = np.array([(18.97, 190.0, 28.99), (18.97, 107.8, 51.48), (18.97, 35.2, 79.90)])
"""Points z, y, x on the axis; it goes on straight at both ends."""
WALL_NM = (8.0, 14.0)
INSIDE_NM = 16.0
RADIUS = 150.0
"""Å; the tube with its wall whole: the outer edge is at 140."""
MIDDLE_NM = AXIS_NM[1]
CLICKS = 6
"""Seeds along the axis, each the only one of a job: how many pieces are found depends on which is clicked."""

FloatVolume = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a mask agrees with the tube; fractions.

    Attributes
    ----------
    precision : of its voxels that lie within 16 nm of the axis
    coverage : of the wall that it covers
    """

    precision: float
    coverage: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What the job found."""

    summary: Summary
    volume: FloatVolume
    instances: Sequence[Instance]
    own: Instance | None
    seed: VoxelPoints

    @property
    def everything(self) -> Mask:
        """All instances together, shape (Z, Y, X)."""
        return np.asarray(self.painted(self.instances) > 0)

    @property
    def seeded(self) -> Mask:
        """The instance on the seed; empty where there is none."""
        return np.asarray(self.painted([] if self.own is None else [self.own]) > 0)

    def painted(self, instances: Sequence[Instance]) -> NDArray[np.integer]:
        """Labels, shape (Z, Y, X)."""
        z, y, x = self.volume.shape
        return paint((z, y, x), instances)


def read_volume() -> FloatVolume:
    """The tomogram, shape (Z, Y, X)."""
    import tifffile

    return np.asarray(tifffile.imread(DATA), dtype=np.float32)


def distance_to_axis(shape_zyx: tuple[int, ...]) -> FloatVolume:
    """Distance of every voxel to the axis in nm."""
    ends = [AXIS_NM[0] + (AXIS_NM[0] - AXIS_NM[1]), *AXIS_NM, AXIS_NM[-1] + (AXIS_NM[-1] - AXIS_NM[-2])]
    place = np.stack(np.indices(shape_zyx), axis=-1) * VOXEL_NM
    nearest = np.full(shape_zyx, np.inf)
    for start, stop in itertools.pairwise(ends):
        along = stop - start
        part = np.clip((place - start) @ along / (along @ along), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(place - start - part[..., None] * along, axis=-1))
    return nearest.astype(np.float32)


def agreement(mask: Mask) -> Agreement:
    """Compare a mask, shape (Z, Y, X), with the tube."""
    distance = distance_to_axis(mask.shape)
    wall = (distance >= WALL_NM[0]) & (distance <= WALL_NM[1])
    inside = float((distance[mask] <= INSIDE_NM).mean()) if mask.any() else 0.0
    return Agreement(precision=inside, coverage=float(mask[wall].mean()))


def clicks() -> list[NDArray[np.float64]]:
    """Places z, y, x in nm between the known ends of the axis, evenly spread over its length and off its ends."""
    lengths = np.linalg.norm(np.diff(AXIS_NM, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(lengths)])
    wanted = (np.arange(CLICKS) + 0.5) / CLICKS * along[-1]
    return list(np.stack([np.interp(wanted, along, one) for one in AXIS_NM.T], axis=1))


def pick(folder: Path, settings: Settings, place_nm: NDArray[np.float64] = MIDDLE_NM) -> Result:
    """Make a copick project of the tomogram in `folder` and run the job from one seed on the axis."""
    volume = read_volume()
    z, y, x = volume.shape
    grid = Grid((z, y, x), VOXEL_NM * 10)
    seed = VoxelPoints(place_nm[None] / VOXEL_NM)
    config = create_project(
        folder, "microtubule", [NewObject(name="microtubule", radius=RADIUS, color=(0, 114, 178, 255))]
    )
    add_tomogram(config, "MT", "wbp", volume, grid.voxel_spacing)
    add_picks(config, "MT", PicksUri("microtubule", "curator", "1"), seed, grid)
    found = _Found()
    job = Job.create(config=str(config), tomogram=f"wbp@{grid.voxel_spacing}", seeds="microtubule:curator/1")
    summary = run_job(job, settings, found)
    return Result(
        summary=summary,
        volume=volume,
        instances=found.instances,
        own=_own(found.instances, seed.zyx[0]),
        seed=seed,
    )


class _Found(Listener):
    def __init__(self) -> None:
        self.instances: Sequence[Instance] = ()

    def run_ended(self, outcome: Outcome) -> None:
        if outcome.search is not None:
            self.instances = outcome.search.found.instances


def _own(instances: Sequence[Instance], seed: NDArray[np.float64]) -> Instance | None:
    """The instance whose centroid is nearest to the seed, within one radius."""
    near = [(float(np.linalg.norm(np.array(one.centroid_zyx) - seed)), one) for one in instances]
    distance, nearest = min(near, key=lambda pair: pair[0], default=(np.inf, None))
    return nearest if distance * VOXEL_NM * 10 <= RADIUS else None


def _blobs(volume: FloatVolume) -> Mask:
    """Balls of the object's radius at the picks of a difference of Gaussians."""
    radius_vox = RADIUS / (VOXEL_NM * 10)
    index = np.indices(volume.shape)
    mask = np.zeros(volume.shape, dtype=bool)
    for point in pick_blobs(standardise(volume), radius_vox).points.zyx:
        mask |= ((index - point[:, None, None, None]) ** 2).sum(axis=0) <= radius_vox**2
    return mask


def table(results: Sequence[Result]) -> str:
    """The figures of several jobs and their means, as lines of text; of the blobs, which know no seed, once."""
    row = "{:28}  {:>9}  {:>15}  {:>14}"
    lines = [row.format("seed at z y x (voxels)", "instances", f"within {INSIDE_NM:g} nm", "wall covered")]
    figures = []
    for one in results:
        found = agreement(one.everything)
        figures.append((len(one.instances), found.precision, found.coverage))
        place = " ".join(f"{value:.0f}" for value in one.seed.zyx[0])
        lines.append(row.format(place, len(one.instances), f"{found.precision:.3f}", f"{found.coverage:.3f}"))
    instances, precision, coverage = np.mean(figures, axis=0)
    lines.append(row.format("mean", f"{instances:.1f}", f"{precision:.3f}", f"{coverage:.3f}"))
    blobs = agreement(_blobs(results[0].volume))
    lines.append(row.format("difference of Gaussians", "", f"{blobs.precision:.3f}", f"{blobs.coverage:.3f}"))
    return "\n".join(lines)


def save_figure(result: Result, path: Path) -> None:
    """Slices through the seed, along z, y and x, with instances (orange), seed's own (green) and the wall (blue)."""
    from matplotlib.figure import Figure

    where = np.round(result.seed.zyx[0]).astype(int)
    distance = distance_to_axis(result.volume.shape)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axis, panel in enumerate(figure.subplots(1, 3, width_ratios=(94, 94, 206))):
        slab = np.take(result.volume, range(where[axis] - 1, where[axis] + 2), axis=axis).mean(axis=axis)
        panel.imshow(slab, cmap="gray")
        panel.set_title(f"{'zyx'[axis]} = {where[axis]}")
        panel.contour(np.take(distance, where[axis], axis=axis), levels=WALL_NM, colors="tab:blue", linewidths=0.8)
        for mask, colour in ((result.everything, "tab:orange"), (result.seeded, "tab:green")):
            plane = np.take(mask, where[axis], axis=axis)
            if plane.any():
                panel.contour(plane, levels=[0.5], colors=colour, linewidths=1.2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Pick from every seed and print the figures."""
    parser = argparse.ArgumentParser(description="Figures on a real tomogram of a microtubule")
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--no-second-look", action="store_true", help="rank by similarity alone")
    parser.add_argument("--figure", type=Path, help="save slices with outlines as PNG, of one seed")
    given = parser.parse_args()
    if not DATA.is_file():
        raise SystemExit(f"data: expected {DATA}, found nothing")
    settings = preset(given.preset)
    if given.no_second_look:
        settings = override(settings, {"alignment": {"second_look": False}})
    results = []
    for place in clicks():
        with tempfile.TemporaryDirectory() as folder:
            results.append(pick(Path(folder), settings, place))
    print(table(results))
    if given.figure is not None:
        save_figure(results[len(results) // 2], given.figure)


if __name__ == "__main__":
    main()
