"""Kinds made of others: bent, stretched, and grown together from two, so that every one drawn is new.

What EmbedNet knows of kinds that it never saw grows with how many it saw, and there are few density maps. This makes
endless ones of a map's texture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.placing import random_direction
from copick_cryosam.pretraining.shapes import FloatVolume, Shape, finish

WHOLE_ONLY = ("barrel", "tube", "capped")
"""Families of which no part is taken: half of one with something else at its end is held out."""

_STRETCH = 0.35
"""Largest logarithm of how much longer or shorter an axis becomes."""
_WAVES, _BEND = 3, 0.15
"""Waves that bend a shape, and how far each does at most, in radii."""
_SOFT = 1.0
"""Voxels over which one part passes into the other."""


_LARGER = 1.5
"""How many times its size a shape may become: what is blown up has no detail."""


def warped(rng: np.random.Generator, shape: Shape, other: Shape, radius: float) -> Shape:
    """A kind of about `radius` voxels, if the shape is not much smaller: the shape stretched along any three axes and bent, half of the time a part of it
    in the place of which there is one of the other, treated alike."""
    radius = min(radius, _LARGER * shape.radius)
    half = int(np.ceil(1.7 * radius)) + 2
    axis = np.arange(-half, half + 1, dtype=np.float64)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    density = _bent(rng, shape, grid, radius)
    if not {shape.family, other.family} & set(WHOLE_ONLY) and rng.random() < 0.5:
        beyond = grid @ random_direction(rng) - rng.uniform(-0.4, 0.4) * radius
        share = 1 / (1 + np.exp(-beyond / _SOFT))
        density = (1 - share) * density + share * _bent(rng, other, grid, radius)
    return finish(shape.name, "warped", density.astype(np.float32))


def _bent(rng: np.random.Generator, shape: Shape, grid: NDArray[np.float64], radius: float) -> FloatVolume:
    """The shape's density at places of `grid`, shape (Z, Y, X, 3), voxels from its centre."""
    moved = grid / radius
    for _ in range(_WAVES):
        wave = random_direction(rng) * rng.uniform(1.0, 3.0)
        moved = moved + np.multiply.outer(
            np.sin(moved @ wave + rng.uniform(0, 2 * np.pi)), random_direction(rng) * rng.uniform(0, _BEND)
        )
    stretch = np.exp(rng.uniform(-_STRETCH, _STRETCH, size=3))
    turn, back = Rotation.random(2, random_state=rng).as_matrix()
    places = (moved @ turn * stretch / np.cbrt(stretch.prod())) @ back * shape.radius
    middle = (np.array(shape.density.shape) - 1) / 2
    read = ndimage.map_coordinates(shape.density, np.moveaxis(places + middle, -1, 0), order=1, mode="constant")
    return np.asarray(read, dtype=np.float32)
