"""Where the domains of a random complex lie: on circles, in any direction, beside each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def around(height: ArrayLike, radius: ArrayLike, angle: ArrayLike) -> NDArray[np.float64]:
    """Points around the z axis, z, y, x, shape (..., 3): cylindrical coordinates, angles in radians from +x to +y."""
    along, out, turn = np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in (height, radius, angle)))
    return np.stack([along, out * np.sin(turn), out * np.cos(turn)], axis=-1)


def corners_of(fold: int) -> NDArray[np.float64]:
    """Angles, radians, of the corners of a regular polygon, shape (fold,), the first 0."""
    return np.arange(fold) * 2 * np.pi / fold


def random_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """A unit vector, any as likely as any other, shape (3,)."""
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def walk(rng: np.random.Generator, count: int, step: float) -> NDArray[np.float64]:
    """Domains that touch: each is a step away from one of those before it."""
    points = [np.zeros(3)]
    for _ in range(count - 1):
        direction = rng.normal(size=3)
        points.append(points[rng.integers(len(points))] + step * direction / np.linalg.norm(direction))
    return np.array(points)


def copies_around(unit: NDArray[np.float64], fold: int) -> NDArray[np.float64]:
    """A unit, points (N, 3), and its copies turned around the z axis: shape (fold * N, 3), copy by copy."""
    copies = []
    for angle in corners_of(fold):
        c, s = np.cos(angle), np.sin(angle)
        copies.append(unit @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T)
    return np.concatenate(copies)


def facing(layer: NDArray[np.float64], apart: float) -> NDArray[np.float64]:
    """A layer, points (N, 3), moved up along z, and the same turned over below it: shape (2 N, 3)."""
    upper = layer + np.array([apart, 0, 0])
    return np.concatenate([upper, upper * np.array([-1, -1, 1])])
