"""Vectors of unit length, whose products are cosines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.types import FloatArray

_LEAST = 1e-12
"""A vector shorter than this has no direction, and stays short."""


def to_unit(vectors: NDArray[Any]) -> FloatArray:
    """Vectors divided by their lengths; shape (..., C)."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _LEAST), dtype=np.float64)
