"""Rotations and directions spread evenly over all there are, and small turns around each of them.

All matrices act on (z, y, x) columns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from copick_cryosam.types import FloatArray

_PSI = 1.533751168755204288118041
"""The real root of x^4 = x + 4, from the paper."""


def even_rotations(count: int) -> FloatArray:
    """`count` rotations spread evenly: super-Fibonacci spirals (Alexa, CVPR 2022); shape (count, 3, 3)."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    a, b = 2 * np.pi * s / math.sqrt(2), 2 * np.pi * s / _PSI
    quaternions = np.stack([inner * np.sin(a), inner * np.cos(a), outer * np.sin(b), outer * np.cos(b)], axis=1)
    return np.asarray(Rotation.from_quat(quaternions).as_matrix(), dtype=np.float64)


def even_directions(count: int) -> FloatArray:
    """Points spread evenly over the unit sphere, shape (count, 3), from +z to -z: a Fibonacci lattice."""
    index = np.arange(count) + 0.5
    up = 1 - 2 * index / count
    turn = np.pi * (1 + 5**0.5) * index
    flat = np.sqrt(1 - up**2)
    return np.stack([up, flat * np.sin(turn), flat * np.cos(turn)], axis=1)


def spacing_of(count: int) -> float:
    """About how many degrees lie between neighbours of `count` even rotations.

    The group of rotations has the volume 8 π² in radians; every neighbourhood takes its share of it.
    """
    return math.degrees((8 * math.pi**2 / count) ** (1 / 3))


def small_rotations(degrees: float) -> FloatArray:
    """The identity, and turns by `degrees` around the axes and the diagonals of a cube; shape (27, 3, 3)."""
    directions = np.array([[a, b, c] for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)], dtype=np.float64)
    lengths = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1)
    return np.asarray(Rotation.from_rotvec(directions / lengths * math.radians(degrees)).as_matrix())


def angles_between(first: NDArray[np.float64], second: NDArray[np.float64]) -> FloatArray:
    """Degrees of the turn from one rotation to another, shapes (..., 3, 3) -> (...)."""
    trace = np.einsum("...ij,...ij->...", first, second)
    return np.asarray(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))))
