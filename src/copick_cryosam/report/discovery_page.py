"""The page from which clusters of discovered particles get their names: self-contained HTML, no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from copick_cryosam.report.page import write_page
from copick_cryosam.report.planes import bar_length, encode_image, grey_levels
from copick_cryosam.types import FloatArray, Grid, Volume, VoxelPoints

__all__ = ["ClusterReport", "DiscoveredRun", "DiscoveryReport", "render_discovery", "write_discovery"]

_EXAMPLES = 6
_HALF = 2.0
"""Half the edge of a thumbnail in radii of the cluster's typical particle."""
_LARGEST = 40
"""Voxels; half the edge of a thumbnail at most."""
_OVERVIEWS = 3
"""Runs of which a slice is shown."""
_SLAB = 2
_COLOURS = ("#e69f00", "#56b4e9", "#2fc08f", "#f0e442", "#5a8dee", "#ff7f50", "#d67ab1", "#b8de6f")


@dataclass(frozen=True, eq=False, kw_only=True)
class DiscoveredRun:
    """What was found in one tomogram.

    Attributes
    ----------
    volume : opens the tomogram, shape (Z, Y, X); called once, and let go of before the next
    points : voxels, best first
    probability, radius_vox, diameter_vox : shape (N,)
    labels : shape (N,); the cluster of each, 0 the rest
    """

    run_name: str
    volume: Callable[[], Volume]
    grid: Grid
    points: VoxelPoints
    probability: FloatArray
    radius_vox: FloatArray
    diameter_vox: FloatArray
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class ClusterReport:
    """One cluster: its name, where its picks lie, and the command that searches for more; None for the rest."""

    name: str
    label: int
    uri: str
    command: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class DiscoveryReport:
    """A page over all runs of a discovery; `radius` in Å is that of the object that the picks belong to."""

    title: str
    object_name: str
    radius: float
    polarity: str
    runs: Sequence[DiscoveredRun]
    clusters: Sequence[ClusterReport]
    command: str
    versions: Mapping[str, object]
    warnings: Sequence[str] = ()


@dataclass(eq=False)
class _Gathered:
    """What is kept of a cluster while one tomogram after the other is read."""

    half: int
    total: NDArray[np.float64]
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


def render_discovery(report: DiscoveryReport) -> str:
    """The page as HTML text; tomograms are read one after the other."""
    gathered, chosen = _plan(report)
    overviews: list[dict[str, Any]] = []
    for number, run in enumerate(report.runs):
        if len(run.points) == 0:
            continue
        volume = run.volume()
        if len(overviews) < _OVERVIEWS:
            overviews.append(_overview(run, volume, report.clusters))
        for index, (point, label) in enumerate(zip(run.points.zyx, run.labels, strict=True)):
            _gather(gathered[int(label)], run, volume, point, index, (number, index) in chosen)
    environment = Environment(
        loader=PackageLoader("copick_cryosam", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("discover.html.j2").render(
        report=report,
        total=sum(len(run.points) for run in report.runs),
        clusters=[_cluster(report, one, gathered[one.label]) for one in report.clusters if one.label in gathered],
        overviews=overviews,
    )


def write_discovery(report: DiscoveryReport, path: Path) -> Path:
    """Write the page, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    return write_page(render_discovery(report), path)


def _plan(report: DiscoveryReport) -> tuple[dict[int, _Gathered], set[tuple[int, int]]]:
    """Thumbnail sizes, and which particles are shown: from the best of a cluster to its worst, evenly by rank."""
    gathered, chosen = {}, set()
    for one in report.clusters:
        members = [
            (float(run.probability[i]), float(run.radius_vox[i]), number, int(i))
            for number, run in enumerate(report.runs)
            for i in np.flatnonzero(run.labels == one.label)
        ]
        if not members:
            continue
        half = int(np.clip(round(_HALF * float(np.median([radius for _, radius, _, _ in members]))), 4, _LARGEST))
        gathered[one.label] = _Gathered(half, np.zeros((2 * half + 1,) * 3))
        members.sort(reverse=True)
        whole = [one for one in members if _fits(report.runs[one[2]], one[3], half)]
        members = whole if len(whole) >= _EXAMPLES else members
        ranks = np.unique(np.linspace(0, len(members) - 1, _EXAMPLES).round().astype(int))
        chosen |= {members[rank][2:] for rank in ranks}
    return gathered, chosen


def _fits(run: DiscoveredRun, index: int, half: int) -> bool:
    """Whether a particle's thumbnail lies in the tomogram."""
    point = run.points.zyx[index]
    return bool((point >= half).all() and (point < np.array(run.grid.shape_zyx) - half - 1).all())


def _gather(into: _Gathered, run: DiscoveredRun, volume: Volume, point: FloatArray, index: int, show: bool) -> None:
    crop = _crop(volume, np.floor(point + 0.5).astype(int) - into.half, 2 * into.half + 1)
    if np.isfinite(crop).all():
        # contrast differs from tomogram to tomogram
        into.total += (crop - crop.mean()) / max(float(crop.std()), 1e-6)
        into.count += 1
    if show:
        x, y, z = run.grid.to_angstrom(VoxelPoints(point)).xyz[0]
        text = f"{x:.0f}, {y:.0f}, {z:.0f}"
        score = float(run.probability[index])
        into.examples.append({"image": _strip(crop, 1.0), "run": run.run_name, "score": score, "position": text})


def _cluster(report: DiscoveryReport, one: ClusterReport, found: _Gathered) -> dict[str, Any]:
    of = [(run, run.labels == one.label) for run in report.runs]
    spacing = report.runs[0].grid.voxel_spacing
    diameters = np.concatenate([run.diameter_vox[mine] * run.grid.voxel_spacing for run, mine in of]) / 10
    radius = float(np.median(np.concatenate([run.radius_vox[mine] * run.grid.voxel_spacing for run, mine in of])))
    edge = 2 * found.half + 1
    bar = bar_length(edge * spacing / 10 * 1.6)
    counts = [(run.run_name, int(mine.sum())) for run, mine in of]
    return {
        "name": one.name,
        "color": _colour(one.label),
        "uri": one.uri,
        "command": one.command,
        "count": sum(count for _, count in counts),
        "counts": counts,
        "most": max(count for _, count in counts),
        "diameter": [float(value) for value in np.percentile(diameters, (25, 50, 75))],
        "radius": radius,
        "fits": 0.7 < radius / report.radius < 1.4,
        "average": _strip(found.total, 0.0) if found.count >= 4 else None,
        "averaged": found.count,
        "examples": sorted(found.examples, key=lambda example: -example["score"]),
        "edge": edge,
        "bar": bar * 10 / spacing,
        "bar_label": f"{bar:g} nm",
    }


def _strip(crop: NDArray[np.floating[Any]], blur: float) -> str:
    """Central planes xy, xz and yz side by side, as a data URI; black where the tomogram ends."""
    inside = np.isfinite(crop)
    # beyond the border the mean, so that the blur does not bring an edge in and the contrast stays that of the inside
    values = np.where(inside, crop, crop[inside].mean()).astype(np.float32)
    if blur:
        values = gaussian_filter(values, blur)
    low, high = np.percentile(values[inside], (0.5, 99.5))
    values[~inside] = low
    middle = len(values) // 2
    planes = [grey_levels(np.take(values, middle, axis=axis), float(low), float(high)) for axis in range(3)]
    return encode_image(np.concatenate(planes, axis=1), quality=88)


def _crop(volume: Volume, start: NDArray[np.int64], edge: int) -> NDArray[np.float32]:
    """A cube of `edge` voxels from `start`, NaN outside the volume."""
    crop = np.full((edge, edge, edge), np.nan, dtype=np.float32)
    low, high = np.maximum(start, 0), np.minimum(start + edge, volume.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    inside = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
    crop[inside] = volume[z, y, x]
    return crop


def _overview(run: DiscoveredRun, volume: Volume, clusters: Sequence[ClusterReport]) -> dict[str, Any]:
    """The plane across z through the middle of the particles, with those that it cuts."""
    depth, height, width = run.grid.shape_zyx
    plane = int(np.clip(round(float(np.median(run.points.zyx[:, 0]))), 0, depth - 1))
    slab = np.asarray(volume[max(0, plane - _SLAB) : plane + _SLAB + 1, slice(None), slice(None)])
    image = gaussian_filter(slab.astype(np.float32).mean(axis=0), 1.0)
    low, high = np.percentile(image, (0.5, 99.5))
    names = {one.label: one.name for one in clusters}
    circles = []
    for point, radius, label in zip(run.points.zyx, run.radius_vox, run.labels, strict=True):
        cut = float(radius) ** 2 - float(point[0] - plane) ** 2
        if cut > 0:
            x, y, size = float(point[2]) + 0.5, float(point[1]) + 0.5, max(cut**0.5, 2.0)
            circles.append({"x": x, "y": y, "r": size, "color": _colour(int(label)), "name": names[int(label)]})
    bar = bar_length(width * run.grid.voxel_spacing / 10)
    return {
        "name": run.run_name,
        "plane": plane,
        "width": width,
        "height": height,
        "image": encode_image(grey_levels(image, float(low), float(high))),
        "circles": circles,
        "bar": bar * 10 / run.grid.voxel_spacing,
        "bar_label": f"{bar:g} nm",
    }


def _colour(label: int) -> str:
    if label == 0:
        return "#9aa0a6"
    if label <= len(_COLOURS):
        return _COLOURS[label - 1]
    # the golden angle keeps neighbours apart, however many there are
    return f"hsl({label * 137.5 % 360:.0f} 70% 65%)"
