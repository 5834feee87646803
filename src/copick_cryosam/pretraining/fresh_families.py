"""Families of particles that no training draws, to choose settings on kinds that are new to the nets.

Tuning on kinds that training saw says little of others: the ranking with the best figures there found fewer of the
held-out ones (`README.md`, *n*). The held-out kinds themselves are for reporting.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from copick_cryosam.pretraining.doubled_families import doubled
from copick_cryosam.pretraining.placing import around, corners_of, walk
from copick_cryosam.pretraining.pool import LUMPS
from copick_cryosam.pretraining.shapes import Cloud, Families, Shape, random_shape

RADII = (5.0, 14.0)
"""Voxels; small ones are drawn more often."""
DOUBLED_RADII = (10.0, 18.0)
"""Voxels, of particles that consist of two complexes."""
LOOK_ALIKES = 2
"""Kinds of a data set that have the family of the one before, and nearly its size."""


def fresh_shapes(templates: Path | None, rng: np.random.Generator) -> list[Shape]:
    """Five families, and look-alikes of the last; `templates` hold none of them (see `validate.Survey`)."""
    families = [str(name) for name in rng.permutation(sorted(FRESH_FAMILIES))][: len(FRESH_FAMILIES) - 1]
    shapes = [_draw(rng, family, float(np.exp(rng.uniform(*np.log(RADII))))) for family in families]
    last = shapes[-1].radius
    shapes += [_draw(rng, families[-1], last * float(rng.uniform(0.9, 1.1)), f"-{k}") for k in range(LOOK_ALIKES)]
    return shapes


def doubled_shapes(templates: Path | None, rng: np.random.Generator) -> list[Shape]:
    """Three fresh kinds, and one of each sort that consists of two complexes of fresh families side by side."""
    shapes = fresh_shapes(templates, rng)[:3]
    for family in sorted(FRESH_DOUBLED):
        radius = float(np.exp(rng.uniform(*np.log(DOUBLED_RADII))))
        name, lump = f"{family}-{radius:.0f}", float(rng.uniform(*LUMPS))
        shapes.append(random_shape(rng, family=family, radius=radius, name=name, lump=lump, families=FRESH_DOUBLED))
    return shapes


def _draw(rng: np.random.Generator, family: str, radius: float, number: str = "") -> Shape:
    name, lump = f"{family}-{radius:.0f}{number}", float(rng.uniform(*LUMPS))
    return random_shape(rng, family=family, radius=radius, name=name, lump=lump, families=FRESH_FAMILIES)


def _pair(rng: np.random.Generator) -> Cloud:
    """Two different lumps of domains that touch."""
    halves = [walk(rng, int(rng.integers(5, 12)), 0.4) for _ in range(2)]
    apart = np.array([0, 0, rng.uniform(0.4, 0.6)])
    cloud = np.concatenate(
        [half - half.mean(axis=0) + side * apart for half, side in zip(halves, (-1, 1), strict=True)]
    )
    return cloud, rng.uniform(0.14, 0.26, size=len(cloud))


def _coil(rng: np.random.Generator) -> Cloud:
    """A tube wound around an axis, one and a half to three times, narrower at one end."""
    count = int(rng.integers(14, 30))
    along = np.linspace(0, 1, count)
    turn = 2 * np.pi * along * rng.uniform(1.5, 3)
    radius = rng.uniform(0.4, 0.8) * (1 + rng.uniform(-0.4, 0.4) * along)
    cloud = around((along - 0.5) * rng.uniform(0.8, 1.8), radius, turn)
    return cloud, np.full(count, rng.uniform(0.14, 0.22))


def _wheel(rng: np.random.Generator) -> Cloud:
    """A rim, spokes, and a hub that stands out on one side."""
    fold = int(rng.integers(3, 8))
    parts = [around(0, 0.95, corners_of(4 * fold))]
    parts += [around(0.05 * k, 0.3 * k, corners_of(fold)) for k in (1, 2)]
    parts.append(np.linspace(0, rng.uniform(0.2, 0.9), 3)[:, None] * np.array([1, 0, 0]))
    cloud = np.concatenate(parts)
    return cloud, np.full(len(cloud), rng.uniform(0.13, 0.2))


def _plate(rng: np.random.Generator) -> Cloud:
    """A slab of domains, some of them missing, bent a little."""
    count = int(rng.integers(3, 6))
    y, x = np.meshgrid(np.linspace(-1, 1, count), np.linspace(-1, 1, count))
    bent = rng.uniform(-0.4, 0.4) * (x**2 - y**2)
    cloud = np.stack([bent, y * rng.uniform(0.5, 1), x], axis=-1).reshape(-1, 3)
    if count > 3:
        cloud = cloud[rng.random(len(cloud)) < 0.8]
    cloud = cloud + rng.normal(scale=0.05, size=cloud.shape)
    return cloud, rng.uniform(0.18, 0.3, size=len(cloud))


def _cage(rng: np.random.Generator) -> Cloud:
    """The edges of a stretched octahedron or tetrahedron."""
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    corners = octahedron if rng.random() < 0.5 else tetrahedron
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    edges = np.argwhere(np.triu((apart > 0) & (apart < apart[apart > 0].min() * 1.01)))
    steps = np.linspace(0, 1, 5)[:, None]
    cloud = np.concatenate([corners[i] + (corners[j] - corners[i]) * steps for i, j in edges])
    return cloud * rng.uniform(0.7, 1.3, size=3), np.full(len(cloud), rng.uniform(0.14, 0.22))


def _star(rng: np.random.Generator) -> Cloud:
    """Arms of unlike lengths around a core, with knobs at their ends."""
    arms = int(rng.integers(3, 7))
    directions = rng.normal(size=(arms, 3))
    ends = directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(0.7, 1.3, size=(arms, 1))
    widths = [np.full(1, rng.uniform(0.25, 0.45)), np.full(arms, 0.14), rng.uniform(0.18, 0.32, size=arms)]
    return np.concatenate([np.zeros((1, 3)), ends / 2, ends]), np.concatenate(widths)


FRESH_FAMILIES: Families = {
    "pair": _pair,
    "coil": _coil,
    "wheel": _wheel,
    "plate": _plate,
    "cage": _cage,
    "star": _star,
}

FRESH_DOUBLED = doubled(FRESH_FAMILIES)
"""What tells parts from particles is chosen on."""
