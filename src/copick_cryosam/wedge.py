"""The missing wedge of a single-axis tilt series: which frequencies were measured, and its angles from the data.

A projection at tilt t fills, in the plane across the tilt axis, the line of frequencies at the angle t from the
specimen's plane (central slice theorem). A series from `tilt_min` to `tilt_max` fills the double sector between
them; the rest is empty, and what a reconstruction shows there is leakage.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.config import AlignmentSettings
from copick_cryosam.contrast import check
from copick_cryosam.errors import InputError

logger = logging.getLogger(__name__)

TiltAxis = Literal["y", "x"]

QUALITY = 0.7
"""An estimate of less is not believed. Simulated volumes without a wedge reached 0.61 (strongly smoothed along z);
a wrong axis reached 0.78, always beside a better right one."""
MARGIN = 0.05
"""By how much the better tilt axis must be better than the other."""
_PLANES = 256
"""Planes whose power is averaged; more change nothing, as each holds thousands of frequencies."""
_SEGMENT = 256
"""Voxels; wider planes are cut into overlapping segments."""
_NEAREST = 4.0
"""Samples from the origin; nearer, the window's main lobe covers both edges of the wedge."""
_FARTHEST = 0.45
"""Cycles per voxel."""
_LEAST_POWER = 0.01
"""Of the strongest shell; shells with less were emptied by a filter and hold leakage and rounding."""
_FILLED = 0.5
"""Of the power near the specimen's plane; what has as much is taken for measured."""
_SURELY_MEASURED = 25.0
_SURELY_MISSING = 85.0
_NEAR = 6.0
"""Degrees around the first estimate in which its edges are refined."""
_STEP = 0.5


@dataclass(frozen=True)
class Wedge:
    """What a tilt series measured.

    The beam is along z. An angle is that of a frequency in the plane across the tilt axis, from the specimen's
    plane towards +z: atan2(k_z, k_x) for a tilt axis along y, atan2(k_z, k_y) for one along x.

    Attributes
    ----------
    tilt_min, tilt_max : degrees, -90 <= tilt_min < tilt_max <= 90
    axis : the tilt axis
    estimated : whether the angles were read off a tomogram; not compared
    quality : how well they explain the spectrum, 0 to 1, see `estimate_wedge`; not compared

    Raises
    ------
    InputError
        Angles out of order or range, or another axis.
    """

    tilt_min: float = -60.0
    tilt_max: float = 60.0
    axis: TiltAxis = "y"
    estimated: bool = field(default=False, compare=False)
    quality: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if not -90 <= self.tilt_min < self.tilt_max <= 90:
            raise InputError(
                f"tilt range: expected -90 <= least < greatest <= 90, found {self.tilt_min:g} to {self.tilt_max:g}",
                hint="Give the angles in degrees, the smaller one first",
            )
        if self.axis not in ("y", "x"):
            raise InputError(f"tilt axis: expected y or x, found {self.axis}", hint="Name one of the two")

    def measured(self, frequencies: torch.Tensor, edge: float = 0.0) -> torch.Tensor:
        """How far frequencies were measured: 1 inside, 0 in the missing wedge; the same for k and -k.

        Parameters
        ----------
        frequencies : shape (..., 3), order z, y, x, any unit
        edge : width of the linear fall outside the boundary, in the unit of `frequencies`; 0 is a hard edge

        Returns
        -------
        The shape of `frequencies` without its last axis, and its dtype.
        """
        up = frequencies[..., 0]
        across = frequencies[..., 2 if self.axis == "y" else 1]
        low, high = math.radians(self.tilt_min), math.radians(self.tilt_max)
        # distances to the two boundary planes; the double sector holds k where either k or -k is inside both
        below_high = across * math.sin(high) - up * math.cos(high)
        above_low = up * math.cos(low) - across * math.sin(low)
        inside = torch.maximum(torch.minimum(below_high, above_low), torch.minimum(-below_high, -above_low))
        if edge > 0:
            return (1 + inside / edge).clamp(0, 1)
        # a frequency on the boundary belongs to the last projection, whatever rounding makes of it
        rounding = 8 * torch.finfo(frequencies.dtype).eps * (up.abs() + across.abs())
        return (inside >= -rounding).to(frequencies.dtype)


DEFAULT_WEDGE = Wedge()
"""Tilts of ±60 degrees around y, the most usual scheme."""


def estimate_wedge(
    volume: NDArray[np.float32], default: Wedge = DEFAULT_WEDGE, *, axis: TiltAxis | None = None
) -> Wedge:
    """Read tilt axis and tilt range off a tomogram's power spectrum.

    For both candidates of the tilt axis the power of the planes across it is averaged and sampled on angle and
    radius. Each radius is divided by its power near the specimen's plane, so that neither the CTF nor a filter
    counts, and radii that a filter emptied are left out. One double sector is fitted to all of them by least
    squares. Its quality is the share of the variance that it explains, times 1 - power outside / power inside. The
    axis of the better quality wins. An empty band that a filter or interpolation along z leaves has another angle
    at each radius and explains less. In simulated tomograms of 24 to 64 slices the edges are off by 1.7 degrees in the
    median and 7 at worst, mostly outwards.

    Parameters
    ----------
    volume : shape (Z, Y, X); clipping fills the wedge, so as little of it as possible
    default : returned, with `estimated` False and the quality reached, where the fit is not believed: quality
        under `QUALITY`, both axes alike, or an edge at the end of the search (25 and 85 degrees)
    axis : the tilt axis where it is known; None: found

    Raises
    ------
    DataError
        A volume in which nothing can be found, see `contrast.check`.
    """
    check(volume)
    axes: tuple[TiltAxis, TiltAxis] = ("y", "x")
    first, second = sorted((_fit(volume, each) for each in axes), key=lambda one: -one.quality)
    if axis is not None and first.axis != axis:
        # the other axis explains the spectrum better, so what was found along the given one is leakage
        return Wedge(default.tilt_min, default.tilt_max, axis, estimated=False, quality=second.quality)
    found = all(_SURELY_MEASURED < abs(edge) < _SURELY_MISSING for edge in (first.tilt_min, first.tilt_max))
    if first.quality < QUALITY or first.quality - second.quality < MARGIN or not found:
        return Wedge(default.tilt_min, default.tilt_max, axis or default.axis, estimated=False, quality=first.quality)
    return first


def wedge_of(volume: NDArray[np.float32], settings: AlignmentSettings) -> Wedge:
    """As the settings say, else from the tomogram's spectrum, else the default, which is told; see `estimate_wedge`."""
    given, axis = settings.tilt_range, settings.tilt_axis
    if given is not None and axis is not None:
        return Wedge(given[0], given[1], axis)
    found = estimate_wedge(volume, axis=axis)
    if given is not None:
        found = Wedge(given[0], given[1], found.axis)
    elif not found.estimated:
        logger.warning(
            "missing wedge: the power spectrum does not tell; tilts of %g to %g degrees around %s are assumed "
            "(settings alignment.tilt_range and tilt_axis)",
            found.tilt_min,
            found.tilt_max,
            found.axis,
        )
    return found


def _fit(volume: NDArray[np.float32], axis: TiltAxis) -> Wedge:
    """The double sector that explains most, for one tilt axis."""
    angles = np.arange(-90, 90, _STEP)
    power = _polar_power(volume if axis == "y" else volume.transpose(0, 2, 1), np.deg2rad(angles))
    level = np.median(power[:, np.abs(angles) < _SURELY_MEASURED], axis=1)
    some = level > _LEAST_POWER * level.max()
    share = power[some] / level[some, None]
    # what lies above: streaks of beads, weaker high tilts, the specimen's own anisotropy, nothing on the edges
    (low, high), quality = _sector(np.minimum(share / _FILLED, 1), angles, (-_SURELY_MISSING, _SURELY_MISSING))
    # the window blurs an edge evenly, so it lies where half the power is left
    (low, high), _ = _sector(np.minimum(share, 1), angles, (max(low - _NEAR, -90), min(high + _NEAR, 90)), 2 * _NEAR)
    return Wedge(low, high, axis, estimated=True, quality=quality)


def _sector(
    filled: NDArray[np.float64], angles: NDArray[np.float64], outermost: tuple[float, float], width: float = 90.0
) -> tuple[tuple[float, float], float]:
    """Least-squares edges of a sector, and its quality: the variance explained times how empty the rest is.

    Parameters
    ----------
    filled : shape (radii, angles), 0 to 1
    outermost : the widest sector in question; edges lie within `width` inside of it and are no nearer than 25 degrees
    """
    lows = np.flatnonzero((angles >= outermost[0]) & (angles <= min(outermost[0] + width, -_SURELY_MEASURED)))
    highs = np.flatnonzero((angles <= outermost[1]) & (angles >= max(outermost[1] - width, _SURELY_MEASURED)))
    cumulated = np.concatenate([[0], np.cumsum(filled.mean(axis=0))])
    count = highs[None] + 1 - lows[:, None]
    inside = (cumulated[highs[None] + 1] - cumulated[lows[:, None]]) / count
    outside = (cumulated[-1] - inside * count) / (len(angles) - count)
    # a sector emptier than the rest explains nothing that is looked for
    contrast = np.maximum(inside - outside, 0)
    explained = count * (len(angles) - count) / len(angles) ** 2 * contrast**2
    best = np.unravel_index(int(explained.argmax()), explained.shape)
    spread = float(filled.var())
    quality = float(explained[best] / spread * contrast[best] / inside[best]) if spread > 0 else 0.0
    return (float(angles[lows[best[0]]]), float(angles[highs[best[1]]])), quality


def _polar_power(volume: NDArray[np.float32], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean power of planes (z, last axis), shape (radii, angles)."""
    depth, rows, width = volume.shape
    segment = min(width, _SEGMENT)
    starts = np.unique(np.linspace(0, width - segment, max(1, round(2 * width / segment) - 1)).round().astype(int))
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, max(1, _PLANES // len(starts)))).round().astype(int))
    # a thin volume has few samples along z: zeros around it make the spectrum smooth enough to interpolate
    high, wide = (scipy.fft.next_fast_len(max(2 * n, 128), real=True) for n in (depth, segment))
    window = (np.hanning(depth + 2)[1:-1, None] * np.hanning(segment + 2)[1:-1]).astype(np.float32)
    power = np.zeros((high, wide // 2 + 1))
    for start in starts:
        for row in chosen:
            plane = volume[:, row, start : start + segment]
            plane = np.asarray((plane - plane.mean()) * window, dtype=np.float32)
            power += np.abs(scipy.fft.rfft2(plane, s=(high, wide))) ** 2
    power = np.fft.fftshift(power, axes=0)
    radii = np.linspace(min(_NEAREST / min(depth, segment), _FARTHEST - 0.1), _FARTHEST, 40)[:, None]
    at = [radii * np.sin(angles) * high + high // 2, radii * np.cos(angles) * wide]
    return np.asarray(ndimage.map_coordinates(power, at, order=1, mode="nearest"))
