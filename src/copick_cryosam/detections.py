"""Particles of any kind that were found without a seed in one tomogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.types import FloatArray, VoxelPoints


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
    pairs : rows of neighbours, the surer first, shape (P, 2)
    odds : logarithm, of being parts of one particle by what lies between the two, shape (P,)
    """

    points: VoxelPoints
    probability: FloatArray
    radius_vox: FloatArray
    diameter_vox: FloatArray
    features: NDArray[np.float32]
    pairs: NDArray[np.int64]
    odds: FloatArray

    def __len__(self) -> int:
        return len(self.points)
