"""What speaks for a peak of the centre map being a particle of any kind: one row of numbers each.

The height of the peak says most, but where particles are few, so does a membrane's rim or a filament at times. What the
encoder sees on spheres around the peak tells them apart: a particle has foreground as far as its radius, and an
embedding that is not that of clutter. Nothing here is of one kind of particle or another.
"""

from __future__ import annotations

import numpy as np

from copick_cryosam.features import DenseFeatures
from copick_cryosam.spheres import REGIONS, nearest_cells, on_spheres, read_spheres
from copick_cryosam.types import FloatArray, VoxelPoints

_NET_STRIDE = 2.0
"""Voxels of the net in a cell, as in EmbedNet."""


def columns_of(channels: int) -> int:
    """Columns of `peak_evidence` for embeddings of so many channels."""
    return 3 + len(REGIONS) * (1 + channels)


def peak_evidence(
    features: DenseFeatures, points: VoxelPoints, radius_vox: FloatArray, height: FloatArray
) -> FloatArray:
    """Rows (N, `columns_of`) for the peaks of one tomogram.

    The columns: logarithms of height and of radius in the net's voxels, centre probability at the place itself, then
    foreground and embedding on each of the spheres.

    Parameters
    ----------
    points : of the peaks, shape (N, 3)
    radius_vox : of the particles that they would be, voxels, shape (N,)
    height : of the peaks, 1 where the net is certain, shape (N,)

    Raises
    ------
    ValueError
        The features know no foreground and no centres.
    """
    if features.foreground is None or features.centre is None:
        raise ValueError("peaks: expected features with foreground and centre maps, found none")
    seen, foreground = read_spheres(features, on_spheres(points, radius_vox))
    net_radius = _NET_STRIDE * np.asarray(radius_vox) / float(np.mean(features.grid.stride))
    return np.column_stack(
        [
            np.log(np.asarray(height) + 1e-2),
            np.log(net_radius),
            features.centre[tuple(nearest_cells(features, points.zyx).T)].astype(np.float64),
            foreground,
            seen.reshape(len(points), seen.shape[1] * seen.shape[2]).astype(np.float64),
        ]
    )
