"""Families of particles that the ranking learns on and EmbedNet does not.

EmbedNet's features say more of the families that it was trained on than of a user's particle. A ranking that learns on
those families alone trusts them too much elsewhere (`README.md`, *n*).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.pretraining.placing import around, corners_of, random_direction, walk
from copick_cryosam.pretraining.shapes import Cloud, Families
from copick_cryosam.rotations import even_directions


def _knot(rng: np.random.Generator) -> Cloud:
    """A tube that runs several times around a ring and through it: a torus knot."""
    turns, through = ((2, 3), (3, 2), (2, 5), (1, 3), (3, 4))[int(rng.integers(5))]
    t = np.linspace(0, 2 * np.pi, int(rng.integers(24, 44)), endpoint=False)
    ring, tube = 0.7, rng.uniform(0.2, 0.4)
    across = ring + tube * np.cos(through * t)
    points = around(tube * np.sin(through * t), across, turns * t)
    return points * [rng.uniform(0.8, 2), 1, 1], np.full(len(t), rng.uniform(0.12, 0.18))


def _cross(rng: np.random.Generator) -> Cloud:
    """Two or three rods of unlike lengths that meet at any angle, not in their middles."""
    parts, widths = [], []
    for _ in range(int(rng.integers(2, 4))):
        along = np.linspace(-1, 1, int(rng.integers(4, 8))) * rng.uniform(0.6, 1.2) + rng.uniform(-0.4, 0.4)
        parts.append(along[:, None] * random_direction(rng) + rng.normal(scale=0.12, size=3))
        widths.append(np.full(len(along), rng.uniform(0.14, 0.3)))
    return np.concatenate(parts), np.concatenate(widths)


def _cup(rng: np.random.Generator) -> Cloud:
    """A bowl on a stem, or without."""
    count = int(rng.integers(40, 90))
    sphere = even_directions(count)
    bowl = sphere[sphere[:, 0] > rng.uniform(-0.1, 0.5)] * [rng.uniform(0.4, 1.1), 1, rng.uniform(0.7, 1)]
    widths = np.full(len(bowl), rng.uniform(0.13, 0.22))
    if rng.random() < 0.6:
        stem = np.linspace(0.1, rng.uniform(0.5, 1.4), 4)[:, None] * [1, 0, 0] + [bowl[:, 0].max(), 0, 0]
        bowl, widths = np.concatenate([bowl, stem]), np.append(widths, np.full(4, rng.uniform(0.15, 0.3)))
    return bowl, widths


def _polyhedron(rng: np.random.Generator) -> Cloud:
    """Copies of a unit under the rotations of a tetrahedron, or of an octahedron."""
    unit = walk(rng, int(rng.integers(1, 4)), 0.25) + random_direction(rng) * rng.uniform(0.6, 0.9)
    turns = _tetrahedral() if rng.random() < 0.6 else np.concatenate([_tetrahedral(), _tetrahedral() @ _QUARTER])
    cloud = np.concatenate([unit @ turn.T for turn in turns])
    return cloud, np.full(len(cloud), rng.uniform(0.14, 0.24))


_QUARTER = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def _tetrahedral() -> NDArray[np.float64]:
    """The twelve rotations, shape (12, 3, 3): even permutations of the axes with an even number of signs."""
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)
    return np.stack([np.roll(np.diag(sign), shift, axis=0) for shift in range(3) for sign in signs])


def _stack(rng: np.random.Generator) -> Cloud:
    """Discs of unlike sizes on an axis that bends."""
    parts, widths = [], []
    bend = rng.uniform(-0.4, 0.4)
    levels = int(rng.integers(3, 6))
    for level in range(levels):
        z = level - (levels - 1) / 2
        radius, count = rng.uniform(0.1, 0.8), int(rng.integers(3, 9))
        disc = around(0.45 * z, radius, corners_of(count) + rng.uniform(0, np.pi))
        parts.append(disc + np.array([0, bend * z**2 * 0.3, 0]))
        widths.append(np.full(count, rng.uniform(0.15, 0.3)))
    return np.concatenate(parts), np.concatenate(widths)


def _propeller(rng: np.random.Generator) -> Cloud:
    """Blades that are twisted out of the plane of a hub, one of them shorter now and then."""
    blades, steps = int(rng.integers(2, 6)), 4
    twist = rng.uniform(-0.6, 0.6)
    parts = [np.zeros((1, 3))]
    for k in range(blades):
        reach = rng.uniform(0.5, 0.8) if rng.random() < 0.2 else 1.0
        along = np.linspace(0.3, reach, steps)
        parts.append(around(twist * along, along, 2 * np.pi * k / blades + 0.6 * along))
    cloud = np.concatenate(parts)
    widths = np.append(rng.uniform(0.2, 0.4), np.tile(np.linspace(0.16, rng.uniform(0.12, 0.32), steps), blades))
    return cloud, widths


RANKING_FAMILIES: Families = {
    "knot": _knot,
    "cross": _cross,
    "cup": _cup,
    "polyhedron": _polyhedron,
    "stack": _stack,
    "propeller": _propeller,
}
