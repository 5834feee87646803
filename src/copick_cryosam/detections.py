"""Particles of any kind that were found without a seed, and which of them look alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.clustering import by_size, cluster
from copick_cryosam.rigid_pairs import rigid_pairs
from copick_cryosam.types import FloatArray, VoxelPoints

__all__ = ["Detections", "group"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """Particles of any kind in one tomogram, best first.

    Attributes
    ----------
    points : voxels z, y, x
    probability : shape (N,), 0 to 1, of being a particle's centre
    radius_vox : shape (N,), from the size of the peak, steps of the ladder
    diameter_vox : shape (N,), of the sphere with the volume of the particle's foreground; 0 where it has none
    features : float32, shape (N, C), mean embedding
    """

    points: VoxelPoints
    probability: FloatArray
    radius_vox: FloatArray
    diameter_vox: FloatArray
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.points)


def group(found: Sequence[Detections], clusters: int | None = None) -> list[tuple[Detections, NDArray[np.int64]]]:
    """Which particles of some tomograms look alike; look-alikes that come in rigid pairs are halves of one.

    Parameters
    ----------
    found : particles of each tomogram; all tomograms have the same voxel spacing
    clusters : how many kinds; None: found automatically

    Returns
    -------
    For each tomogram its particles and the cluster of each: 1 is the most numerous one of all tomograms together, 0 is
    the rest, of clusters too small to be one.
    """
    if not found:
        return []
    labels = np.split(
        cluster(np.concatenate([one.features for one in found]), clusters),
        np.cumsum([len(one) for one in found])[:-1],
    )
    whole = [_whole(one, part, pairs) for one, part, pairs in zip(found, labels, _halves(found, labels), strict=True)]
    # who lost half of its picks may not be the most numerous one any more
    named = by_size(np.concatenate([part for _, part in whole]))
    parts = np.split(named, np.cumsum([len(one) for one, _ in whole])[:-1])
    return [(one, part) for (one, _), part in zip(whole, parts, strict=True)]


def _halves(found: Sequence[Detections], labels: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Rows of each tomogram's picks that are halves of one particle, shape (P, 2)."""
    pairs: list[list[NDArray[np.int64]]] = [[np.empty((0, 2), dtype=np.int64)] for _ in found]
    for name in range(1, 1 + max(int(part.max(initial=0)) for part in labels)):
        members = [np.flatnonzero(part == name) for part in labels]
        radii = np.concatenate([one.radius_vox[rows] for one, rows in zip(found, members, strict=True)])
        points = [one.points.zyx[rows] for one, rows in zip(found, members, strict=True)]
        for some, rows, two in zip(pairs, members, rigid_pairs(points, float(np.median(radii))), strict=True):
            some.append(rows[two])
    return [np.concatenate(some) for some in pairs]


def _whole(
    found: Detections, labels: NDArray[np.int64], pairs: NDArray[np.int64]
) -> tuple[Detections, NDArray[np.int64]]:
    """Each pair as one particle: between its halves, as large as both, as sure as the surer one."""
    left = np.setdiff1d(np.arange(len(found)), pairs[:, 1])
    # a particle that is no half is its own partner
    other = np.arange(len(found))
    other[pairs[:, 0]] = pairs[:, 1]
    both = np.stack([left, other[left]], axis=1)
    size = np.cbrt(np.where(both[:, 0] == both[:, 1], 1, 2))
    probability = found.probability[both].max(axis=1)
    order = np.argsort(-probability, kind="stable")
    both, size = both[order], size[order]
    merged = Detections(
        points=VoxelPoints(found.points.zyx[both].mean(axis=1)),
        probability=probability[order],
        # as large as both together
        radius_vox=size * np.cbrt((found.radius_vox[both] ** 3).mean(axis=1)),
        diameter_vox=size * np.cbrt((found.diameter_vox[both] ** 3).mean(axis=1)),
        features=found.features[both].mean(axis=1),
    )
    return merged, labels[both[:, 0]]
