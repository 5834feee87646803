"""From a label volume to particles: connected components, their centroids, scores and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from copick_cryosam.sasi.settings import InferenceSettings
from copick_cryosam.sasi.splitting import split
from copick_cryosam.types import Instance

__all__ = ["WHOLE", "find_particles"]

WHOLE = np.iinfo(np.uint16).max
"""A probability of 1 as it is kept in 16 bits: half the memory of float32, and finer near 1 than float16."""


def find_particles(
    labels: NDArray[np.uint8],
    probability: NDArray[np.uint16],
    radii: Sequence[float],
    settings: InferenceSettings,
) -> list[list[Instance]]:
    """The particles of each class; what is dropped is taken out of `labels`, too.

    A component is a set of voxels of one class that touch by faces, edges or corners (26-connectivity); it is a
    particle, or several if it is too large (`splitting`). The centroid of a particle is the pick, its score the mean
    probability of its class over its voxels.

    Parameters
    ----------
    labels : 0 is background, class k is k; shape (Z, Y, X), contiguous; changed in place
    probability : of the class that won each voxel, in parts of `WHOLE`; shape (Z, Y, X)
    radii : of the sphere that is a particle's label, voxels; one for each class
    settings : what is dropped, and what is split

    Returns
    -------
    For each class its particles, best first; similarity and confidence are the score.
    """
    components, count = cc3d.connected_components(labels, connectivity=26, return_N=True)
    statistics = cc3d.statistics(components, no_slice_conversion=True)
    sizes, boxes = statistics["voxel_counts"], statistics["bounding_boxes"].astype(np.int64)
    least = [settings.min_size * 4 / 3 * math.pi * radius**3 for radius in radii]
    found: list[list[Instance]] = [[] for _ in radii]
    keep = np.zeros(count + 1, dtype=np.bool_)
    # Noise makes many small components, and looking at each is slow.
    for number in 1 + np.flatnonzero(sizes[1:] >= min(least)):
        keep[number] = True
        low, high = boxes[number, ::2], boxes[number, 1::2] + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        mask = components[box] == number
        label = int(labels[box][mask][0])
        for part, offset in split(mask, radii[label - 1], settings.split):
            one = _particle(part, low + offset, probability)
            if one.size < least[label - 1] or one.score < settings.min_score:
                labels[one.slices][part] = 0
            else:
                found[label - 1].append(one)
    for plane, numbers in zip(labels, components, strict=True):  # plane by plane: no second volume of indices
        plane[~keep[numbers]] = 0
    return [sorted(some, key=lambda one: -one.score) for some in found]


def _particle(mask: NDArray[np.bool_], origin: NDArray[np.int64], probability: NDArray[np.uint16]) -> Instance:
    box = tuple(slice(start, start + size) for start, size in zip(origin, mask.shape, strict=True))
    score = float(probability[box][mask].mean(dtype=np.float64)) / WHOLE
    z, y, x = (float(axis.mean()) + start for axis, start in zip(np.nonzero(mask), origin, strict=True))
    return Instance(
        mask=mask,
        origin_zyx=(int(origin[0]), int(origin[1]), int(origin[2])),
        prompt_zyx=(z, y, x),
        similarity=score,
        confidence=score,
        score=score,
    )
