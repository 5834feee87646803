"""Segmented particles as lists: scored, ordered, and rid of wrong sizes and duplicates (CryoSAM section 2.3).

Each function takes a list of instances and returns a new one; the instances themselves never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from copick_cryosam.config import InstanceSettings
from copick_cryosam.errors import SeedError
from copick_cryosam.segmenters.fusing import CrossPlaneMask
from copick_cryosam.suppression import survivors
from copick_cryosam.types import FloatArray, Instance, Pose, centroids

__all__ = ["best_first", "drop_duplicates", "drop_wrong_sizes", "from_masks", "select"]


_BEST = 10
"""Instances whose sizes count beside the seeds'."""


def from_masks(
    masks: Sequence[CrossPlaneMask],
    similarity: FloatArray,
    expected_precision: FloatArray | None = None,
    *,
    scores: FloatArray | None = None,
    poses: Sequence[Pose] | None = None,
    rank_by: Literal["similarity", "product"] = "product",
) -> list[Instance]:
    """Instances from masks and the similarity of their prompts, in the same order.

    The score is that of the second look, where there was one; otherwise the similarity. `product` multiplies either
    with the confidence; there a similarity below zero counts as zero: otherwise the surest mask of a dissimilar
    object would rank last but the poorest one first.

    Parameters
    ----------
    masks : N masks of `cross_plane.segment`; those in which nothing was found give empty instances
    similarity : shape (N,), -1 to 1
    expected_precision : shape (N,), 0 to 1; None where nothing was calibrated
    scores : shape (N,), what matching ranks by after the second look; None: the similarity
    poses : N orientations; None where there are none
    """
    if expected_precision is None:
        expected_precision = np.full(len(masks), np.nan)
    ranks = similarity if scores is None else scores
    turned: Sequence[Pose | None] = [None] * len(masks) if poses is None else poses
    return [
        Instance(
            mask=one.mask,
            origin_zyx=one.origin_zyx,
            prompt_zyx=one.prompt_zyx,
            similarity=float(alike),
            confidence=one.confidence,
            score=float(rank) if rank_by == "similarity" else max(float(rank), 0.0) * one.confidence,
            expected_precision=float(precision),
            pose=pose,
        )
        for one, alike, precision, rank, pose in zip(masks, similarity, expected_precision, ranks, turned, strict=True)
    ]


def best_first(instances: Sequence[Instance]) -> list[Instance]:
    """By falling score; equal scores keep their order."""
    return sorted(instances, key=lambda one: -one.score)


def drop_wrong_sizes(
    instances: Sequence[Instance], seeds: Sequence[Instance], settings: InstanceSettings
) -> list[Instance]:
    """Keep instances whose voxel count is within `settings.size_range` of the typical one; empty ones go.

    Typical is the median over the seeds and the ten best instances: one seed's mask alone may be poor.

    Raises
    ------
    SeedError
        No seed has a mask to compare with.
    """
    sizes = [one.size for one in seeds if one.size]
    if not sizes:
        raise SeedError(
            f"seed masks: expected at least one that is not empty, found {len(seeds)} seeds without one",
            hint="Check the seeds' positions, the object's radius and the contrast polarity",
        )
    best = [one.size for one in best_first(instances) if one.size][:_BEST]
    typical = float(np.median(sizes + best))
    low, high = (factor * typical for factor in settings.size_range)
    return [one for one in instances if one.size and low <= one.size <= high]


def drop_duplicates(instances: Sequence[Instance], radius_vox: float, settings: InstanceSettings) -> list[Instance]:
    """Keep the best of instances whose centroids lie closer than `settings.duplicate_radius` object radii.

    Greedy, best score first: an instance goes if a better one that is kept lies too close. The result is
    ordered best first.
    """
    ordered = best_first(instances)
    kept = survivors(centroids(ordered).zyx, settings.duplicate_radius * radius_vox)
    return [one for one, keep in zip(ordered, kept, strict=True) if keep]


def select(
    instances: Sequence[Instance], seeds: Sequence[Instance], radius_vox: float, settings: InstanceSettings
) -> list[Instance]:
    """Sizes, duplicates and `settings.max_picks` in turn; the picks of one tomogram, best first.

    How many proposals are worth segmenting at all is decided before, by calibration.

    Parameters
    ----------
    instances : segmented proposals
    seeds : segmented seeds, of this or other tomograms of the same voxel spacing
    radius_vox : radius of the object in voxels

    Raises
    ------
    SeedError
        See `drop_wrong_sizes`.
    """
    return drop_duplicates(drop_wrong_sizes(instances, seeds, settings), radius_vox, settings)[: settings.max_picks]
