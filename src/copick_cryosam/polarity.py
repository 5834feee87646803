"""How much the encoder takes the seeds for particles, seen bright and seen dark.

At high noise a single particle's contrast is lost in the noise, while an encoder that was trained on bright
particles still tells them from the same volume with its sign turned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.encoders import Encoder
from copick_cryosam.types import VoxelPoints

_CONTEXT = 2.5
"""Object radii around a seed that the encoder sees, and at least `_LEAST` voxels."""
_LEAST = 40


def foreground_both_ways(
    volume: NDArray[np.float32],
    seeds: VoxelPoints,
    radius_vox: float,
    encoder: Encoder,
    voxel_spacing: float | None = None,
) -> tuple[float, float] | None:
    """Mean foreground probability within one radius of the seeds, the volume taken as bright and as dark.

    Parameters
    ----------
    volume : standardised, shape (Z, Y, X)
    seeds : voxels, inside the volume

    Returns
    -------
    (as it is, with its sign turned), 0 to 1 each; None where the encoder does not recognise particles;
    nothing is encoded then.
    """
    if not encoder.recognises_particles:
        return None
    half = round(max(_LEAST, _CONTEXT * radius_vox))
    shares = []
    for seed in seeds.zyx:
        middle = np.floor(seed + 0.5).astype(int)
        start, stop = np.maximum(middle - half, 0), np.minimum(middle + half + 1, volume.shape)
        box = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        pair = []
        for sign in (np.float32(1), np.float32(-1)):
            features = encoder.encode(np.ascontiguousarray(box * sign), voxel_spacing=voxel_spacing)
            assert features.foreground is not None
            cells = np.indices(features.grid.shape).reshape(3, -1).T
            distance = np.linalg.norm(features.grid.to_voxels(cells).zyx - (seed - start), axis=1)
            pair.append(float(features.foreground.ravel()[distance <= radius_vox].mean()))
        shares.append(pair)
    bright, dark = np.mean(shares, axis=0)
    return float(bright), float(dark)
