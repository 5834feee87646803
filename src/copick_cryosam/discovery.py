"""Particles of any kind without a seed, from the peaks of what the encoder takes for centres.

How probably a peak is a particle's, a small net says that was learned on simulated tomograms, and another one how
probably two of them are parts of one particle (`peak_evidence`, `pair_evidence`, `pretraining.train_peaks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.calibration import expected_f1_optimum
from copick_cryosam.contrast import check, standardise
from copick_cryosam.detections import Detections
from copick_cryosam.errors import InputError
from copick_cryosam.features import Features
from copick_cryosam.grouping import group
from copick_cryosam.pair_evidence import neighbours, pair_evidence
from copick_cryosam.peak_evidence import peak_evidence
from copick_cryosam.peaks import NET_SPACING, RADII, diameters, embeddings, peaks_of
from copick_cryosam.ranker import load_peak_rankers
from copick_cryosam.types import FloatArray

if TYPE_CHECKING:
    from copick_cryosam.encoders import Encoder
    from copick_cryosam.pipeline import CryoSAM

__all__ = ["Evidence", "Judges", "decide", "detect", "discover", "evidence", "expected_f1_threshold"]

# Chosen on simulated tomograms of tuning and fresh kinds (validate_discovery --tuning, --fresh).
_DECIDED = 1.5
"""How many times more of the foreground must be doubtful in one polarity than in the other."""
_CROP = (128, 192, 192)
"""Voxels in the middle of a tomogram that are encoded both ways to decide the polarity."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Foreground of a volume taken as bright and as dark: its sum over the cells, and the part in doubtful cells."""

    foreground: tuple[float, float]
    doubtful: tuple[float, float]


class Judges(Protocol):
    """What tells particles from clutter and from parts of particles: `ranker.PeakRankers`."""

    def probability(self, evidence: FloatArray) -> FloatArray:
        """From rows of `peak_evidence`, (N, F), how probably each is a particle, shape (N,)."""
        ...

    def odds(self, evidence: FloatArray) -> FloatArray:
        """From rows of `pair_evidence`, (P, F), the log odds that a pair is parts of one particle, shape (P,)."""
        ...


def detect(
    features: Features,
    judges: Judges,
    *,
    voxel_spacing: float | None = None,
    radius_range: tuple[float, float] | None = None,
    max_picks: int | None = None,
) -> Detections:
    """Every particle of any kind in one tomogram.

    Parameters
    ----------
    voxel_spacing : Å; None: the net's own 10 Å
    radius_range : Å, least and largest radius that is kept; None: all of the ladder
    max_picks : at most so many are kept, the best

    Raises
    ------
    InputError
        The encoder recognises no particles without a seed.
    """
    dense, peaks = peaks_of(features, voxel_spacing)
    probability = judges.probability(
        peak_evidence(dense, dense.grid.to_voxels(peaks.cells), peaks.radius_vox, peaks.height)
    )
    keep = probability >= expected_f1_threshold(probability)
    if radius_range is not None:
        # a step of the ladder stands for the radii around it
        slack = float(np.sqrt(RADII[1] / RADII[0]))
        low, high = (value / (voxel_spacing or NET_SPACING) for value in radius_range)
        keep &= (peaks.radius_vox * slack >= low) & (peaks.radius_vox / slack <= high)
    order = np.argsort(-probability, kind="stable")
    chosen = order[keep[order]][:max_picks]
    peaks, probability = peaks[chosen], probability[chosen]
    points, radius = dense.grid.to_voxels(peaks.cells), peaks.radius_vox
    seen = embeddings(peaks.cells, radius, dense)
    pairs = neighbours(points, radius)
    assert dense.foreground is not None
    return Detections(
        points=dense.grid.clamp(points),
        probability=probability,
        radius_vox=radius,
        diameter_vox=diameters(points, radius, dense.foreground, dense.grid),
        features=seen,
        pairs=pairs,
        odds=judges.odds(pair_evidence(dense, points, radius, seen, pairs)),
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
    found, judges = [], load_peak_rankers()
    for volume in volumes:
        opened = model.open(volume, None, 10.0, polarity=told, voxel_spacing=voxel_spacing)
        found.append(detect(opened.features, judges, voxel_spacing=voxel_spacing))
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
