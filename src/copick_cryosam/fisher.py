"""Fisher's transform: on it, the spread of cosines hardly depends on their height."""

from __future__ import annotations

import numpy as np

from copick_cryosam.types import FloatArray

_LIMIT = 0.995
"""Cosines beyond this one count as this one."""


def fisher_z(cosine: FloatArray) -> FloatArray:
    """arctanh of cosines, any shape; finite at -1 and 1, too."""
    return np.arctanh(np.clip(cosine, -_LIMIT, _LIMIT))
