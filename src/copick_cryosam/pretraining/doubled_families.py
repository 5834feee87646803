"""Families of particles that consist of equal complexes side by side, for what tells parts from particles.

EmbedNet takes the halves of such a particle for two; so it does with complexes that dimerise. `pair_evidence.py` has to
see enough of them beside particles that merely touch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.altered_families import WHOLE
from copick_cryosam.pretraining.ranking_families import RANKING_FAMILIES
from copick_cryosam.pretraining.shapes import Cloud, Families

UNITS: Families = {**WHOLE, **RANKING_FAMILIES}
"""What is doubled: no barrels, as a pair of chaperonins is held out."""


def doubled(units: Families) -> Families:
    """Families whose particles consist of two complexes of these."""
    return {name: partial(join, units) for name, join in (("twofold", _twofold), ("row", _row), ("unlike", _unlike))}


def _unit(units: Families, rng: np.random.Generator) -> Cloud:
    """A complex in any orientation, of radius 1."""
    points, widths = units[str(rng.choice(sorted(units)))](rng)
    points = points - points.mean(axis=0)
    size = float(np.percentile(np.linalg.norm(points, axis=1) + 1.3 * widths, 95))
    return points @ Rotation.random(random_state=rng).as_matrix() / size, widths / size


def _joined(rng: np.random.Generator, one: Cloud, other: Cloud) -> Cloud:
    """The other beside the first one along x, as near as domains of one complex are to each other."""
    (points, widths), (more, thinner) = one, other
    reach = widths[:, None] + thinner
    touching = rng.uniform(0.9, 1.4)
    beside = np.array([0, 0, 3.0])
    while beside[2] > 0.5 and (np.linalg.norm(points[:, None] - more - beside, axis=2) > touching * reach).all():
        beside[2] -= 0.05
    return np.concatenate([points, more + beside]), np.concatenate([widths, thinner])


def _twofold(units: Families, rng: np.random.Generator) -> Cloud:
    """A complex and itself turned by half about an axis beside it."""
    points, widths = _unit(units, rng)
    return _joined(rng, (points, widths), (points * [-1, 1, -1], widths))


def _row(units: Families, rng: np.random.Generator) -> Cloud:
    """Two complexes of one orientation side by side."""
    unit = _unit(units, rng)
    return _joined(rng, unit, unit)


def _unlike(units: Families, rng: np.random.Generator) -> Cloud:
    """Two different complexes side by side, one of them smaller."""
    one, (points, widths) = _unit(units, rng), _unit(units, rng)
    size = rng.uniform(0.5, 1.0)
    return _joined(rng, one, (points * size, widths * size))


DOUBLED_FAMILIES = doubled(UNITS)
