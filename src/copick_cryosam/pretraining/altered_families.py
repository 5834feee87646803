"""Families of particles that EmbedNet is trained on, made of others: cut, stretched, and copied in rings.

A training on ever more particles of the same families teaches nothing further (`README.md`, *j*); other families do.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.placing import copies_around, facing, random_direction
from copick_cryosam.pretraining.shapes import FAMILIES, Cloud, Families
from copick_cryosam.pretraining.wider_families import WIDER_FAMILIES

WHOLE: Families = {
    name: draw for name, draw in {**FAMILIES, **WIDER_FAMILIES}.items() if name not in ("barrel", "capped", "tube")
}
"""What is altered: nothing that could come out as a barrel with something at its end, which is held out."""


def _drawn(rng: np.random.Generator) -> Cloud:
    points, widths = WHOLE[str(rng.choice(sorted(WHOLE)))](rng)
    points = points - points.mean(axis=0)
    return points / float(np.linalg.norm(points, axis=1).max()), widths


def _cut(rng: np.random.Generator) -> Cloud:
    """A complex without what lies beyond a plane, or without what lies in a ball: a part that is not there."""
    points, widths = _drawn(rng)
    if rng.random() < 0.5:
        lost = points @ random_direction(rng)
    else:
        lost = -np.linalg.norm(points - random_direction(rng) * rng.uniform(0.3, 1.0), axis=1)
    kept = lost <= np.quantile(lost, rng.uniform(0.5, 0.9))
    return points[kept], widths[kept]


def _stretched(rng: np.random.Generator) -> Cloud:
    """A complex that is longer or flatter along any direction."""
    points, widths = _drawn(rng)
    turn = Rotation.random(random_state=rng).as_matrix()
    return points @ turn * np.exp(rng.uniform(-0.6, 0.6, size=3)), widths * float(np.exp(rng.uniform(-0.3, 0.3)))


def _ring(rng: np.random.Generator) -> Cloud:
    """Copies of a complex around an axis, at times in two rings that face each other."""
    points, widths = _drawn(rng)
    fold = int(rng.integers(2, 8))
    # neighbours touch, about
    size = np.sin(np.pi / fold) * rng.uniform(0.7, 1.2)
    turn = Rotation.random(random_state=rng).as_matrix()
    unit = points @ turn * size + [0, 1, 0]
    cloud = copies_around(unit, fold)
    if rng.random() < 0.4:
        cloud = facing(cloud, size * rng.uniform(0.5, 1.1))
    return cloud, np.tile(widths * size, len(cloud) // len(points))


ALTERED_FAMILIES: Families = {"cut": _cut, "stretched": _stretched, "ring": _ring}
