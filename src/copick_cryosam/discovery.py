"""Particles of any kind without a seed: peaks of what the encoder takes for centres, one for each particle.

EmbedNet was trained to put a Gaussian of 0.35 object radii at every particle's centre, whatever its kind; what it gives
is a little wider. So the size of such a peak tells the size of the particle, and a normalised Laplacian of a Gaussian
over a ladder of radii (scale-space blobs, Lindeberg 1998) finds place and radius together; its height is 1 where the
net is certain. How probably a peak is a particle's, a small net says that was learned on simulated tomograms
(`peak_evidence`, `pretraining.train_peaks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.calibration import expected_f1_optimum
from copick_cryosam.contrast import check, standardise
from copick_cryosam.detections import Detections, group
from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, DenseFeatures, Features
from copick_cryosam.peak_evidence import peak_evidence
from copick_cryosam.ranker import load_peak_ranker
from copick_cryosam.types import FloatArray, VoxelPoints

if TYPE_CHECKING:
    from copick_cryosam.encoders import Encoder
    from copick_cryosam.pipeline import CryoSAM

__all__ = [
    "RADII",
    "Evidence",
    "Peaks",
    "decide",
    "detect",
    "discover",
    "evidence",
    "expected_f1_threshold",
    "peaks_of",
]

Judge = Callable[[FloatArray], FloatArray]
"""From rows of `peak_evidence`, (N, F), to probabilities (N,)."""

RADII = np.geomspace(43.0, 180.0, 7)
"""Å at the net's voxel spacing; the ladder of radii that are looked for."""
NET_SPACING = 10.0

# The numbers below were chosen on simulated tomograms of tuning and fresh kinds (validate_discovery --tuning, --fresh).
_HEAT, _LEAST = 0.38, 0.75
"""Width of the peaks that the net gives: object radii, and at least so many cells."""
_FLOOR = 0.05
"""Response under which a peak is none."""
_DIP = 0.6
"""Two peaks are one particle unless the centre map falls below this part of the lower one between them."""
_BLUR = 0.5
"""Cells; smoothing of the map in which that is looked at."""
_CORE = 0.7
"""Object radii around a peak over which its embedding is averaged."""
_DECIDED = 1.5
"""How many times more of the foreground must be doubtful in one polarity than in the other."""
_CROP = (128, 192, 192)
"""Voxels in the middle of a tomogram that are encoded both ways to decide the polarity."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Foreground of a volume taken as bright and as dark: its sum over the cells, and the part in doubtful cells."""

    foreground: tuple[float, float]
    doubtful: tuple[float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Peaks:
    """Where particles may be, one peak for each, highest first.

    Attributes
    ----------
    cells : of the features' grid, shape (N, 3)
    height : 0 to 1, shape (N,)
    radius_vox : of the particles that they would be, shape (N,)
    """

    cells: NDArray[np.int64]
    height: FloatArray
    radius_vox: FloatArray


def peaks_of(features: Features, voxel_spacing: float | None = None) -> tuple[DenseFeatures, Peaks]:
    """The peaks of the centre map, and the features as those that have one; parameters and errors as of `detect`."""
    if not isinstance(features, DenseFeatures) or features.centre is None or features.foreground is None:
        raise InputError(
            "encoder: expected one that recognises particles without a seed, found none of its centres",
            hint="Use --preset embedded, whose encoder is embednet",
        )
    ladder = RADII / (voxel_spacing or NET_SPACING)
    cells, height, radius = _peaks(features.centre, ladder, features.grid)
    kept = _one_each(cells, radius, features.centre, features.grid)
    return features, Peaks(cells=cells[kept], height=height[kept], radius_vox=radius[kept])


def detect(
    features: Features,
    judge: Judge,
    *,
    voxel_spacing: float | None = None,
    radius_range: tuple[float, float] | None = None,
    max_picks: int | None = None,
) -> Detections:
    """Every particle of any kind in one tomogram.

    Parameters
    ----------
    judge : says how probably a peak is a particle's, `ranker.PeakRanker.probability`
    voxel_spacing : Å; None: the net's own 10 Å
    radius_range : Å, least and largest radius that is kept; None: all of the ladder
    max_picks : at most so many are kept, the best

    Raises
    ------
    InputError
        The encoder recognises no particles without a seed.
    """
    dense, peaks = peaks_of(features, voxel_spacing)
    points = dense.grid.to_voxels(peaks.cells)
    probability = judge(peak_evidence(dense, points, peaks.radius_vox, peaks.height))
    order = np.argsort(-probability, kind="stable")
    cells, probability, radius = peaks.cells[order], probability[order], peaks.radius_vox[order]
    keep = probability >= expected_f1_threshold(probability)
    if radius_range is not None:
        # a step of the ladder stands for the radii around it
        slack = float(np.sqrt(RADII[1] / RADII[0]))
        low, high = (value / (voxel_spacing or NET_SPACING) for value in radius_range)
        keep &= (radius * slack >= low) & (radius / slack <= high)
    chosen = np.flatnonzero(keep)[:max_picks]
    cells, radius = cells[chosen], radius[chosen]
    points = dense.grid.to_voxels(cells)
    assert dense.foreground is not None
    return Detections(
        points=dense.grid.clamp(points),
        probability=probability[chosen],
        radius_vox=radius,
        diameter_vox=_diameters(points, radius, dense.foreground, dense.grid),
        features=_embeddings(cells, radius, dense),
    )


def discover(
    model: CryoSAM,
    volumes: Sequence[NDArray[np.float32]],
    *,
    polarity: Literal["auto", "dark", "light"] = "auto",
    voxel_spacing: float | None = None,
    clusters: int | None = None,
) -> list[tuple[Detections, NDArray[np.int64]]]:
    """Every particle of any kind in some tomograms, and which of them look alike.

    Parameters
    ----------
    model : with the embedded encoder, `CryoSAM.from_preset("embedded")`
    volumes : shape (Z, Y, X) each, any float unit
    clusters : how many kinds; None: found automatically

    Returns
    -------
    For each volume its detections and the cluster of each: 1 is the most numerous one of all volumes together, 0 is
    the rest, of clusters too small to be one.

    Raises
    ------
    DataError, InputError
        A volume cannot be used, the polarity cannot be decided, or the encoder recognises no particles.
    """
    if polarity == "auto":
        told = decide([evidence(volume, model.encoder, voxel_spacing) for volume in volumes[:3]])
    else:
        told = polarity
    found, judge = [], load_peak_ranker().probability
    for volume in volumes:
        opened = model.open(volume, None, 10.0, polarity=told, voxel_spacing=voxel_spacing)
        found.append(detect(opened.features, judge, voxel_spacing=voxel_spacing))
    return group(found, clusters)


def evidence(volume: NDArray[np.float32], encoder: Encoder, voxel_spacing: float | None = None) -> Evidence:
    """What the encoder sees in the middle of a tomogram taken as bright and as dark.

    Raises
    ------
    DataError, InputError
        The volume cannot be used, or the encoder recognises no particles.
    """
    check(volume)
    scale = max(NET_SPACING / (voxel_spacing or NET_SPACING), 0.2)
    start = [max(0, int(n - c * scale) // 2) for n, c in zip(volume.shape, _CROP, strict=True)]
    box = tuple(slice(a, a + int(c * scale)) for a, c in zip(start, _CROP, strict=True))
    crop = standardise(volume)[box]
    sums, doubts = [], []
    for sign in (np.float32(1), np.float32(-1)):
        foreground = encoder.encode(np.ascontiguousarray(crop * sign), voxel_spacing=voxel_spacing).foreground
        if foreground is None:
            raise InputError(
                f"encoder: expected one that recognises particles without a seed, found {encoder.name}",
                hint="Use --preset embedded, whose encoder is embednet",
            )
        sums.append(float(foreground.sum()))
        doubts.append(float(foreground[foreground < 0.5].sum()))
    return Evidence(foreground=(sums[0], sums[1]), doubtful=(doubts[0], doubts[1]))


def decide(seen: Sequence[Evidence]) -> Literal["dark", "light"]:
    """How particles look, from some tomograms of one kind together.

    An encoder trained on bright particles finds something in an inverted tomogram, too, but it is less sure of it:
    the share of the foreground in cells of probability under one half decides.

    Raises
    ------
    InputError
        Neither way is clear; nothing is guessed.
    """
    total = np.sum([one.foreground for one in seen], axis=0)
    doubtful = (np.sum([one.doubtful for one in seen], axis=0) + 1) / (total + 1)
    bright, dark = float(doubtful[0]), float(doubtful[1])
    if max(bright, dark) < _DECIDED * min(bright, dark):
        raise InputError(
            f"polarity: expected particles that are clearly dark or clearly light, found {bright:.0%} of what looks "
            f"like particles doubtful when taken as light and {dark:.0%} when taken as dark",
            hint="Look at the tomogram and say --polarity dark or --polarity light",
        )
    return "light" if bright < dark else "dark"


def expected_f1_threshold(probability: FloatArray) -> float:
    """The probability from which on the expected F1 of what is kept is highest.

    See `calibration.expected_f1_optimum`. Shape (N,); infinite where there are none.
    """
    ranked = np.sort(np.asarray(probability, dtype=np.float64))[::-1]
    if len(ranked) == 0:
        return float("inf")
    # at least the best one, even of no probability: whether there is a particle is not asked here
    return float(ranked[max(expected_f1_optimum(ranked), 1) - 1])


def _peaks(
    centre: NDArray[np.float32], ladder: FloatArray, grid: CellGrid
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Maxima over place and radius, best first: cells (N, 3), height and radius in voxels."""
    # A Gaussian of width s gives the Laplacian's highest response, 0.5577, at the width sqrt(2 / 3) s.
    best = np.sqrt(2 / 3)
    stack: list[NDArray[np.float32]] = []
    for radius in ladder:
        widths = [best * max(_HEAT * radius / stride, _LEAST) for stride in grid.stride]
        response = ndimage.gaussian_laplace(centre, widths, mode="nearest", output=np.float32)
        stack.append(response * np.float32(-float(np.mean(np.square(widths))) / 0.5577))
    found, heights, radii = [], [], []
    for step, response in enumerate(stack):
        # one level at a time: the maxima over three levels need no four-dimensional filter
        around = np.maximum.reduce(stack[max(step - 1, 0) : step + 2])
        highest = ndimage.maximum_filter(around, size=3, mode="constant", cval=-1.0)
        cells = np.argwhere((response == highest) & (response > _FLOOR))
        found.append(cells)
        heights.append(response[tuple(cells.T)])
        radii.append(np.full(len(cells), ladder[step]))
    cells = np.concatenate(found)
    height = np.clip(np.concatenate(heights).astype(np.float64), 0, 1)
    order = np.argsort(-height, kind="stable")
    return cells[order], height[order], np.concatenate(radii)[order]


def _one_each(
    cells: NDArray[np.int64], radius: FloatArray, centre: NDArray[np.float32], grid: CellGrid
) -> NDArray[np.int64]:
    """Indices of peaks that belong to particles of their own; peaks are given best first.

    A peak falls to a better one within the larger radius of the two, and within the sum of their radii where the
    centre map does not dip between them: particles that touch have a dip, halves of one have none.
    """
    if len(cells) == 0:
        return np.empty(0, dtype=np.int64)
    points = grid.to_voxels(cells).zyx
    blurred = ndimage.gaussian_filter(centre, _BLUR, mode="nearest")
    tree = cKDTree(points)
    alive = np.ones(len(points), dtype=np.bool_)
    kept = []
    along = np.linspace(0, 1, 9)[:, None, None]
    for index in range(len(points)):
        if not alive[index]:
            continue
        kept.append(index)
        near = np.array(tree.query_ball_point(points[index], radius[index] + radius.max()), dtype=np.int64)
        near = near[(near > index) & alive[near]]
        distance = np.linalg.norm(points[near] - points[index], axis=1)
        close = distance < np.maximum(radius[near], radius[index])
        lines = (cells[index] + (cells[near] - cells[index]) * along).transpose(2, 0, 1)
        profile = ndimage.map_coordinates(blurred, lines, order=1, mode="nearest")
        joined = profile.min(axis=0) > _DIP * np.minimum(profile[0], profile[-1])
        alive[near[close | (joined & (distance < radius[near] + radius[index]))]] = False
    return np.array(kept, dtype=np.int64)


def _diameters(points: VoxelPoints, radius: FloatArray, foreground: NDArray[np.float32], grid: CellGrid) -> FloatArray:
    """Diameter in voxels of a sphere of the foreground's volume; each cell of it counts for the nearest peak only."""
    if len(points) == 0:
        return np.empty(0)
    cells = np.argwhere(foreground > 0.5)
    distance, owner = cKDTree(points.zyx).query(grid.to_voxels(cells).zyx)
    owner = np.asarray(owner)[distance <= 1.6 * radius[owner]]
    volume = np.bincount(owner, minlength=len(points)) * float(np.prod(grid.stride))
    return cast(FloatArray, (6 * volume / np.pi) ** (1 / 3))


def _embeddings(cells: NDArray[np.int64], radius: FloatArray, features: DenseFeatures) -> NDArray[np.float32]:
    """Mean embedding over the cells within `_CORE` radii, weighted by their foreground; shape (N, C)."""
    assert features.foreground is not None
    result = np.zeros((len(cells), len(features.values)), dtype=np.float32)
    for row, (cell, size) in enumerate(zip(cells, radius, strict=True)):
        reach = [max(_CORE * size / stride, _LEAST) for stride in features.grid.stride]
        low = [max(0, int(np.ceil(c - r))) for c, r in zip(cell, reach, strict=True)]
        high = [min(n, int(c + r) + 1) for c, r, n in zip(cell, reach, features.grid.shape, strict=True)]
        axes = [(np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, cell, reach, strict=True)]
        inside = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 <= 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        weights = np.maximum(features.foreground[box], 1e-6) * inside
        values = features.values[(slice(None), *box)].float().cpu().numpy()
        result[row] = (values * weights).sum(axis=(1, 2, 3)) / weights.sum()
    return result
