"""Labelled points become labelled voxels: a sphere around each (the weak labels of SaSi)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.sasi.points import LabelledPoints, ParticleClass
from copick_cryosam.sasi.settings import LabelSettings

IGNORE = -1
"""Label of voxels that nothing is learned from; 0 is background, classes count from 1."""


@dataclass(frozen=True, eq=False)
class VoxelLabels:
    """What a window holds.

    Attributes
    ----------
    labels : class of each voxel, 0 or `IGNORE`; shape (Z, Y, X)
    weights : how sure it is: the weight of the point whose sphere the voxel lies in, 1 elsewhere; shape (Z, Y, X)
    """

    labels: NDArray[np.int64]
    weights: NDArray[np.float32]


def sphere_radius(one: ParticleClass, settings: LabelSettings) -> float:
    """Radius of the spheres of a class, voxels."""
    return max(settings.min_radius, settings.radius * one.radius_vox)


def label_window(
    labelled: LabelledPoints,
    classes: Sequence[ParticleClass],
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    settings: LabelSettings,
) -> VoxelLabels:
    """Labels of a window of the tomogram.

    A voxel belongs to the sphere that holds its centre; of several spheres, to the one whose centre is nearest as a
    share of its radius.

    Parameters
    ----------
    labelled : points of the whole tomogram, voxels
    classes : the class numbered 1 first
    corner : the tomogram's voxel that is the window's first; the window may reach beyond the tomogram
    shape : of the window
    """
    nearest = np.full(shape, np.inf)
    labels = np.full(shape, IGNORE if settings.ignore_unlabelled else 0, dtype=np.int64)
    weights = np.ones(shape, dtype=np.float32)
    for centre, number, weight in zip(
        labelled.points.zyx - np.array(corner), labelled.classes, labelled.weights, strict=True
    ):
        radius = sphere_radius(classes[number - 1], settings)
        reach = radius * (settings.near if settings.ignore_unlabelled else 1.0)
        low = np.clip(np.ceil(centre - reach), 0, shape).astype(int)
        high = np.clip(np.floor(centre + reach) + 1, 0, shape).astype(int)
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        axes = np.ogrid[box]
        share = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))) / radius
        around = labels[box]
        around[(share <= reach / radius) & (around == IGNORE)] = 0
        own = (share <= 1) & (share < nearest[box])
        nearest[box][own] = share[own]
        around[own] = number
        weights[box][own] = weight
    return VoxelLabels(labels, weights)
