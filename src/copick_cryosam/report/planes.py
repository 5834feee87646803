"""Slices through a tomogram with masks, picks and seeds drawn over them, in voxels of the slice."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from contourpy import contour_generator
from matplotlib.image import imsave
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from copick_cryosam.evaluation import localization
from copick_cryosam.report.model import RunReport
from copick_cryosam.types import FloatArray, Instance, Slices3, Volume, centroids

__all__ = ["Mark", "Panel", "bar_length", "encode_image", "grey_levels", "outline", "planes", "verdicts"]

_AXES = "zyx"
_SLAB = 2
"""Planes averaged on either side of the slice: single planes of a tomogram show little but noise."""
_LONGEST_EDGE = 512
"""Pixels; keeps three runs of large tomograms within a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A sign on a slice: `kind` is hit, false, duplicate, pick, missed or seed; x, y in voxels of the slice."""

    kind: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One slice: `image` is a data URI, sizes are voxels, `contours` are SVG paths in voxels."""

    name: str
    caption: str
    width: int
    height: int
    image: str
    contours: Sequence[str]
    marks: Sequence[Mark]
    radius: float
    bar_voxels: float
    bar_label: str


def planes(run: RunReport, volume: Volume) -> list[Panel]:
    """Slices xy, xz and yz through the first seed, else through the best pick, else through the middle."""
    shape = run.grid.shape_zyx
    if len(run.seeds):
        focus = run.seeds.zyx[0]
    elif run.instances:
        focus = np.array(max(run.instances, key=lambda one: one.score).centroid_zyx)
    else:
        focus = (np.array(shape) - 1) / 2
    focus = np.clip(np.floor(focus + 0.5), 0, np.array(shape) - 1).astype(int)
    return [_plane(run, volume, axis, int(focus[axis])) for axis in range(3)]


def verdicts(run: RunReport) -> list[str]:
    """For each pick: hit, false or duplicate by the truth at one radius, or pick where no truth is given."""
    if run.truth is None:
        return ["pick"] * len(run.instances)
    scores = localization(run.grid.to_angstrom(centroids(run.instances)), None, run.truth, run.radius_angstrom)
    kinds = ["duplicate" if again else "false" for again in scores.duplicate]
    for index in scores.pairs[:, 0]:
        kinds[index] = "hit"
    return kinds


def outline(mask: NDArray[np.bool_], row: float, column: float) -> str:
    """The border of a 2D mask as an SVG path; `row`, `column` is where its first voxel lies on the slice."""
    padded = np.pad(mask, 1).astype(np.float64)
    # A voxel's centre lies half a voxel from its edge, and the padding adds one voxel.
    lines = contour_generator(z=padded).lines(0.5)
    parts = []
    for line in lines:
        points = np.asarray(line, dtype=np.float64) + np.array([column - 0.5, row - 0.5])
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def grey_levels(values: FloatArray | NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Values between `low` and `high` as 0 to 255, clipped; NaN becomes black."""
    finite: FloatArray = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=low)
    scaled = (finite - low) / max(high - low, 1e-30)
    return np.asarray(np.clip(scaled, 0, 1) * 255, dtype=np.uint8)


def encode_image(grey: NDArray[np.uint8], quality: int = 80) -> str:
    """A 2D image as a JPEG data URI."""
    out = BytesIO()
    imsave(out, grey, format="jpg", cmap="gray", vmin=0, vmax=255, pil_kwargs={"quality": quality})
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _plane(run: RunReport, volume: Volume, axis: int, index: int) -> Panel:
    down, across = (other for other in range(3) if other != axis)
    shape = run.grid.shape_zyx
    slab = [slice(None)] * 3
    slab[axis] = slice(max(0, index - _SLAB), index + _SLAB + 1)
    region: Slices3 = (slab[0], slab[1], slab[2])
    image = gaussian_filter(np.asarray(volume[region], dtype=np.float32).mean(axis=axis), 1.0)
    factor = _LONGEST_EDGE / max(image.shape)
    if factor < 1:
        image = zoom(gaussian_filter(image, 0.4 / factor), factor, order=1)
    low, high = np.percentile(image[np.isfinite(image)], (0.5, 99.5)) if np.isfinite(image).any() else (0.0, 1.0)
    bar = bar_length(shape[across] * run.grid.voxel_spacing / 10)
    name = _AXES[across] + _AXES[down]
    return Panel(
        name=name,
        caption=f"{name} at {_AXES[axis]} = {index} ({_AXES[across]} to the right, {_AXES[down]} down)",
        width=shape[across],
        height=shape[down],
        image=encode_image(grey_levels(image, low, high)),
        contours=[path for one in run.instances if (path := _contour(one, axis, index))],
        marks=_marks(run, axis, index, down, across),
        radius=run.radius_vox,
        bar_voxels=bar * 10 / run.grid.voxel_spacing,
        bar_label=f"{bar:g} nm",
    )


def _contour(one: Instance, axis: int, index: int) -> str:
    inside = index - one.origin_zyx[axis]
    if not 0 <= inside < one.mask.shape[axis]:
        return ""
    row, column = (one.origin_zyx[other] for other in range(3) if other != axis)
    return outline(np.take(one.mask, inside, axis=axis), row, column)


def _marks(run: RunReport, axis: int, index: int, down: int, across: int) -> list[Mark]:
    """Everything whose centre lies within one radius of the slice; voxel i spans i to i + 1 on the drawing."""
    picks = centroids(run.instances).zyx
    groups = [(kind, position) for kind, position in zip(verdicts(run), picks, strict=True)]
    if run.truth is not None:
        found = localization(
            run.grid.to_angstrom(centroids(run.instances)), None, run.truth, run.radius_angstrom
        ).pairs[:, 1]
        missed = np.delete(run.grid.to_voxels(run.truth).zyx, found, axis=0)
        groups += [("missed", position) for position in missed]
    groups += [("seed", position) for position in run.seeds.zyx]
    return [
        Mark(kind=kind, x=float(position[across]) + 0.5, y=float(position[down]) + 0.5)
        for kind, position in groups
        if abs(position[axis] - index) <= run.radius_vox
    ]


def bar_length(width_nm: float) -> float:
    """The roundest length (1, 2 or 5 times a power of ten) of at most a quarter of the width, in nm."""
    power = 10.0 ** np.floor(np.log10(width_nm / 4))
    return float(max(step * power for step in (1, 2, 5) if step * power <= width_nm / 4))
