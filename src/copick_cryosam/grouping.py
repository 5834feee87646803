"""From detections to particles and kinds: parts of one particle become one, look-alikes one cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.clustering import cluster
from copick_cryosam.detections import Detections
from copick_cryosam.parts import owners
from copick_cryosam.types import FloatArray, VoxelPoints

__all__ = ["group"]


def group(found: Sequence[Detections], clusters: int | None = None) -> list[tuple[Detections, NDArray[np.int64]]]:
    """Parts of one particle become one, then which particles of some tomograms look alike is told.

    Parameters
    ----------
    found : particles of each tomogram; all tomograms have the same voxel spacing
    clusters : how many kinds; None: found automatically

    Returns
    -------
    For each tomogram its particles, best first, and the cluster of each: 1 is the most numerous one of all tomograms
    together, 0 is the rest, of clusters too small to be one. The particles' `pairs` are none: all is decided.
    """
    if not found:
        return []
    whole = [_whole(one, owner) for one, owner in zip(found, owners(found), strict=True)]
    labels = cluster(np.concatenate([one.features for one in whole]), clusters)
    return list(zip(whole, np.split(labels, np.cumsum([len(one) for one in whole])[:-1]), strict=True))


def _whole(found: Detections, owner: NDArray[np.int64]) -> Detections:
    """Each particle in the middle of its parts, as large as all of them, as sure as the surest."""
    kept, part_of = np.unique(owner, return_inverse=True)

    def total(values: NDArray[Any]) -> FloatArray:
        sums = np.zeros((len(kept), *values.shape[1:]))
        np.add.at(sums, part_of, values)
        return sums

    volume = found.radius_vox**3
    share = (volume / total(volume)[part_of])[:, None]
    return Detections(
        points=VoxelPoints(total(share * found.points.zyx)),
        probability=found.probability[kept],
        radius_vox=np.cbrt(total(volume)),
        diameter_vox=np.cbrt(total(found.diameter_vox**3)),
        features=total(share * found.features).astype(np.float32),
        pairs=np.empty((0, 2), dtype=np.int64),
        odds=np.empty(0),
    )
