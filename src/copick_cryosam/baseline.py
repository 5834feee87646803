"""The trivial baseline: blobs of the object's size, found by a difference of Gaussians.

It knows the object's radius and nothing else. Its figures stand beside those of the method, so that a
score can be read as what the seed adds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from copick_cryosam.errors import DataError, InputError
from copick_cryosam.suppression import survivors
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints

__all__ = ["blob_response", "otsu_threshold", "pick_blobs", "propose_blobs"]

_WIDTH_RATIO = 1.6
"""Outer over inner standard deviation; 1.6 comes closest to a Laplacian of a Gaussian (Marr & Hildreth, 1980)."""


def blob_response(volume: NDArray[np.float32], radius_vox: float) -> NDArray[np.float32]:
    """Difference of two Gaussians whose kernel changes sign at the object's radius, in robust z-units.

    Parameters
    ----------
    volume : shape (Z, Y, X), particles brighter than their surroundings
    radius_vox : radius of the object in voxels

    Returns
    -------
    float32, shape (Z, Y, X); median 0 and median absolute deviation 1 / 1.4826

    Raises
    ------
    InputError
        The radius is not positive, or the volume is not three-dimensional.
    DataError
        The volume holds NaN or infinity, or all or most of it is constant.
    """
    if not (np.isfinite(radius_vox) and radius_vox > 0):
        raise InputError(f"radius: expected a positive number of voxels, found {radius_vox}", hint="Set the radius")
    if volume.ndim != 3:
        raise InputError(f"volume: expected 3 axes (z, y, x), found {volume.ndim}", hint="Give one tomogram")
    if not np.isfinite(volume).all():
        raise DataError("volume: expected finite values, found NaN or infinity", hint="Repair the tomogram")
    if volume.size == 0 or volume.min() == volume.max():
        raise DataError("volume: expected contrast, found a constant", hint="Check the tomogram")
    # A large offset would cost the float32 filters their precision.
    volume = (volume - volume.mean(dtype=np.float64)).astype(np.float32)
    k = _WIDTH_RATIO
    # Equal values of the two normalised Gaussians at r: r^2 = 6 ln(k) s^2 k^2 / (k^2 - 1) in three dimensions.
    inner = radius_vox / np.sqrt(6 * np.log(k) * k**2 / (k**2 - 1))
    response = gaussian_filter(volume, inner, output=np.float32)
    response -= gaussian_filter(volume, k * inner, output=np.float32)
    response -= np.median(response)
    spread = 1.4826 * float(np.median(np.abs(response)))
    if spread == 0:
        raise DataError("volume: expected contrast, found more than half of it constant", hint="Crop the tomogram")
    response /= np.float32(spread)
    return np.asarray(response)


def propose_blobs(volume: NDArray[np.float32], radius_vox: float, *, nms_radius: float = 1.0) -> Proposals:
    """All blobs brighter than the median response, none closer than `nms_radius` object radii to a better one.

    Parameters
    ----------
    volume : shape (Z, Y, X), particles brighter than their surroundings
    radius_vox : radius of the object in voxels
    nms_radius : radius of non-maximum suppression in object radii

    Returns
    -------
    Proposals
        Best first; `similarity` and `score` are both the response in robust z-units.

    Raises
    ------
    InputError, DataError
        As `blob_response`.
    """
    response = blob_response(volume, radius_vox)
    peaks = np.argwhere((response == maximum_filter(response, size=3)) & (response > 0))
    heights = response[tuple(peaks.T)].astype(np.float64)
    order = np.argsort(-heights, kind="stable")
    peaks, heights = peaks[order], heights[order]
    keep = survivors(peaks.astype(np.float64), nms_radius * radius_vox)
    heights = heights[keep]
    return Proposals(points=VoxelPoints(peaks[keep].astype(np.float64)), similarity=heights, score=heights)


def pick_blobs(volume: NDArray[np.float32], radius_vox: float, *, nms_radius: float = 1.0) -> Proposals:
    """The blobs at or above the automatic threshold: Otsu's on the peak responses.

    Nothing is tuned and no truth is looked at. Parameters and errors are those of `propose_blobs`.
    """
    proposals = propose_blobs(volume, radius_vox, nms_radius=nms_radius)
    return proposals[proposals.score >= otsu_threshold(proposals.score)]


def otsu_threshold(values: FloatArray) -> float:
    """The value that parts `values`, shape (N,), into two classes of largest between-class variance (Otsu, 1979).

    Computed over every split of the sorted values, without a histogram; the upper class is ``>=`` the result.
    Fewer than two distinct values all stay in the upper class.
    """
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    if len(ranked) == 0 or ranked[0] == ranked[-1]:
        return float(ranked[0]) if len(ranked) else 0.0
    below = np.arange(1, len(ranked))
    sums = np.cumsum(ranked)
    mean_below = sums[:-1] / below
    mean_above = (sums[-1] - sums[:-1]) / (len(ranked) - below)
    between = below * (len(ranked) - below) * (mean_above - mean_below) ** 2
    between[ranked[1:] == ranked[:-1]] = -1
    return float(ranked[int(np.argmax(between)) + 1])
