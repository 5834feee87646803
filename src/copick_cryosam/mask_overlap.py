"""Scores of masks against masks; see `evaluation` for what a score of nothing is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import InputError

__all__ = ["PanopticQuality", "dice", "iou", "panoptic_quality", "ratio"]


@dataclass(frozen=True, kw_only=True)
class PanopticQuality:
    """Panoptic quality, the product of segmentation quality (mean IoU of hits) and recognition quality (F1)."""

    quality: float
    segmentation_quality: float
    recognition_quality: float
    true_positives: int
    false_positives: int
    false_negatives: int


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks of the same shape: 2 |A and B| / (|A| + |B|).

    Raises
    ------
    InputError
        The shapes differ.
    """
    overlap, sum_of_sizes = _overlap(predicted, truth)
    return ratio(2 * overlap, sum_of_sizes, empty=True)


def iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of the same shape.

    Raises
    ------
    InputError
        The shapes differ.
    """
    overlap, sum_of_sizes = _overlap(predicted, truth)
    return ratio(overlap, sum_of_sizes - overlap, empty=True)


def panoptic_quality(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> PanopticQuality:
    """Panoptic quality of instance labels (Kirillov et al., 2019, eq. 1).

    Instances match where their IoU exceeds 0.5, which makes the match unique.

    Parameters
    ----------
    predicted, truth : label volumes of the same shape (z, y, x); 0 is background

    Raises
    ------
    InputError
        The shapes differ.
    """
    _same_shape(predicted, truth)
    inside = (predicted != 0) | (truth != 0)
    ids_p, p = np.unique(np.append(predicted[inside], 0), return_inverse=True)
    ids_t, t = np.unique(np.append(truth[inside], 0), return_inverse=True)
    keys, common = np.unique(p[:-1].astype(np.int64) * len(ids_t) + t[:-1], return_counts=True)
    both = (ids_p[keys // len(ids_t)] != 0) & (ids_t[keys % len(ids_t)] != 0)
    sizes_p, sizes_t = np.bincount(p[:-1], minlength=len(ids_p)), np.bincount(t[:-1], minlength=len(ids_t))
    union = sizes_p[keys // len(ids_t)] + sizes_t[keys % len(ids_t)] - common
    overlaps = common[both] / union[both]
    matched = overlaps[overlaps > 0.5]
    hits = len(matched)
    false_positives, false_negatives = len(ids_p) - 1 - hits, len(ids_t) - 1 - hits
    nothing = hits == false_positives == false_negatives == 0
    return PanopticQuality(
        quality=ratio(float(matched.sum()), hits + false_positives / 2 + false_negatives / 2, empty=True),
        segmentation_quality=ratio(float(matched.sum()), hits, empty=nothing),
        recognition_quality=ratio(hits, hits + false_positives / 2 + false_negatives / 2, empty=True),
        true_positives=hits,
        false_positives=false_positives,
        false_negatives=false_negatives,
    )


def _same_shape(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    if predicted.shape != truth.shape:
        raise InputError(f"masks: expected one shape, found {predicted.shape} and {truth.shape}", hint="Align them")


def _overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[int, int]:
    _same_shape(predicted, truth)
    a, b = predicted.astype(bool), truth.astype(bool)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))


def ratio(part: float, whole: float, *, empty: bool) -> float:
    """`part / whole`; where there is nothing to count, 1 if that is as it should be (`empty`) and else 0."""
    return float(part / whole) if whole else float(empty)
