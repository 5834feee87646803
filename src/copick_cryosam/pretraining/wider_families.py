"""Families of particles that EmbedNet is trained on besides those of `shapes`: less regular, more unlike each other."""

from __future__ import annotations

import numpy as np

from copick_cryosam.pretraining.placing import around, corners_of, random_direction, walk
from copick_cryosam.pretraining.shapes import Cloud, Families


def _field(rng: np.random.Generator) -> Cloud:
    """Where a smooth random field is high within an ellipsoid: a complex of any shape, with clefts and holes."""
    axes = rng.uniform(0.5, 1.0, size=3)
    places = rng.uniform(-1, 1, size=(1200, 3))
    places = places[np.linalg.norm(places, axis=1) < 1] * axes
    waves = rng.normal(size=(12, 3)) * rng.uniform(1.5, 4)
    field = np.cos(places @ waves.T + rng.uniform(0, 2 * np.pi, size=12)).sum(axis=1)
    high = places[field > np.quantile(field, rng.uniform(0.5, 0.85))]
    some = high[rng.permutation(len(high))[:80]]
    return some, np.full(len(some), rng.uniform(0.12, 0.18))


def _tree(rng: np.random.Generator) -> Cloud:
    """Thin branches."""
    points = [np.zeros(3)]
    for _ in range(int(rng.integers(3, 7))):
        direction = random_direction(rng)
        start = points[int(rng.integers(len(points)))]
        points += [start + 0.22 * step * direction for step in range(1, int(rng.integers(2, 5)))]
    return np.array(points), rng.uniform(0.13, 0.2, size=len(points))


def _tube(rng: np.random.Generator) -> Cloud:
    """The wall of a cylinder, its units on a helix; open at both ends, or closed at one."""
    turns, fold = int(rng.integers(2, 6)), int(rng.integers(6, 12))
    step = np.arange(turns * fold)
    angle, radius = 2 * np.pi * step / fold, rng.uniform(0.5, 0.9)
    height = (step / fold - turns / 2) * rng.uniform(0.3, 0.5)
    cloud = around(height, radius, angle)
    if rng.random() < 0.4:
        cloud = np.concatenate([cloud, walk(rng, 4, 0.25) + np.array([height.max(), 0, 0])])
    return cloud, np.full(len(cloud), rng.uniform(0.13, 0.19))


def _horseshoe(rng: np.random.Generator) -> Cloud:
    """An open ring, thicker at one end, bent out of its plane."""
    along = np.linspace(0, 1, int(rng.integers(8, 20)))
    angle = along * np.pi * rng.uniform(1.0, 1.8)
    points = around(rng.uniform(-0.8, 0.8) * along**2, 0.8, angle)
    return points, np.linspace(rng.uniform(0.15, 0.25), rng.uniform(0.15, 0.4), len(along))


def _table(rng: np.random.Generator) -> Cloud:
    """A top, legs, and now and then a second plate below them."""
    legs = int(rng.integers(2, 5))
    ring = around(0, 1, corners_of(legs))
    top = np.concatenate([ring * 0.35, ring * 0.7, np.zeros((1, 3))])
    height = rng.uniform(0.5, 1.2)
    spread = rng.uniform(0.3, 0.8)
    parts = [top, *(ring * spread + [down, 0, 0] for down in np.linspace(0.2, height, 3))]
    if rng.random() < 0.4:
        parts.append(ring * rng.uniform(0.2, 0.8) + [height, 0, 0])
    cloud = np.concatenate(parts)
    return cloud, np.where(np.arange(len(cloud)) < len(top), rng.uniform(0.18, 0.3), rng.uniform(0.13, 0.24))


def _cluster(rng: np.random.Generator) -> Cloud:
    """A few balls of very unlike sizes that touch."""
    points, widths = [np.zeros(3)], [rng.uniform(0.3, 0.5)]
    for _ in range(int(rng.integers(2, 6))):
        direction = random_direction(rng)
        width = rng.uniform(0.12, 0.4)
        other = int(rng.integers(len(points)))
        points.append(points[other] + direction * 1.4 * (width + widths[other]))
        widths.append(width)
    return np.array(points), np.array(widths)


def _prism(rng: np.random.Generator) -> Cloud:
    """A solid with three to six flat sides, narrower at one end: wedges and pyramids among them."""
    fold, narrow = int(rng.integers(3, 7)), rng.uniform(0.1, 1.0)
    ring = around(0, 1, corners_of(fold)) * [1, rng.uniform(0.5, 1), 1]
    height = rng.uniform(0.6, 2.0)
    parts = []
    for level in np.linspace(0, 1, 4):
        size = 1 + (narrow - 1) * level
        parts += [ring * 0.4 * size + [height * level, 0, 0], ring * 0.8 * size + [height * level, 0, 0]]
    cloud = np.concatenate(parts)
    return cloud, np.full(len(cloud), rng.uniform(0.16, 0.24))


WIDER_FAMILIES: Families = {
    "field": _field,
    "tree": _tree,
    "tube": _tube,
    "horseshoe": _horseshoe,
    "table": _table,
    "cluster": _cluster,
    "prism": _prism,
}
