"""What speaks for a peak of the centre map being a particle of any kind: one row of numbers each.

The height of the peak says most, but where particles are few, so does a membrane's rim or a filament at times. What the
encoder sees on spheres around the peak tells them apart: a particle has foreground as far as its radius, and an
embedding that is not that of clutter. Nothing here is of one kind of particle or another.
"""

from __future__ import annotations

import numpy as np

from copick_cryosam.features import DenseFeatures
from copick_cryosam.spheres import on_spheres, read_spheres
from copick_cryosam.types import FloatArray, VoxelPoints


def peak_evidence(
    features: DenseFeatures, points: VoxelPoints, radius_vox: FloatArray, height: FloatArray
) -> FloatArray:
    """Rows (N, 3 + 4 + 4 C), C channels of the embedding, for the peaks of one tomogram.

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
    seen, foreground, centre = read_spheres(features, points, on_spheres(points, radius_vox))
    return np.column_stack(
        [
            np.log(np.asarray(height) + 1e-2),
            np.log(features.grid.net_voxels(radius_vox)),
            centre,
            foreground,
            seen.reshape(len(points), seen.shape[1] * seen.shape[2]).astype(np.float64),
        ]
    )
