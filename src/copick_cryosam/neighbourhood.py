"""Which candidates of a tomogram a candidate looks like: those that are surely particles, or others.

A look-alike resembles the seeds; but it resembles its own kind more, of which the tomogram holds several. So what the
first comparison says of a candidate's nearest neighbours says something of the candidate, too: label propagation
(Zhu and Ghahramani, CMU-CALD-02-107, 2002), one step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.types import FloatArray
from copick_cryosam.unit_vectors import to_unit

NEAREST = 5
"""Neighbours that are asked; 3 and 10 do about as well."""
_RIDGE = 0.5
"""Multiple of the mean variance by which the covariance is steadied; 0.3 to 3 do about as well."""
_SEED_WEIGHT = 3.0
"""Candidates that the seeds count as in the mean of the particles."""


def discriminant(
    parts: NDArray[np.float32], seed: NDArray[np.float32], sure: FloatArray, context: NDArray[np.int64]
) -> FloatArray:
    """What parts the surest candidates from the others of this tomogram, as a score of each; shape (N,).

    Fisher's linear discriminant: the difference of the two means, weighed by the inverse covariance of the others.
    Where look-alikes differ in a few directions only, those decide. A candidate is left out of the mean that it is
    compared with.

    Parameters
    ----------
    parts, seed : features of the candidates, shape (N, P), and of the seeds, shape (P,)
    sure : probability of each candidate after the first comparison, its weight among the particles; shape (N,)
    context : the candidates that the tomogram has, by index, repeated as often as each counts
    """
    features = parts.astype(np.float64)
    other = np.maximum(1 - sure, 1e-3) * np.bincount(context, minlength=len(sure))
    rest = np.average(features, axis=0, weights=other)
    centred = features - rest
    covariance = (other[:, None] * centred).T @ centred / other.sum()
    size = len(covariance)
    covariance += (_RIDGE * np.trace(covariance) / size + 1e-9) * np.eye(size)
    weight = _SEED_WEIGHT + float(sure.sum())
    total = _SEED_WEIGHT * seed + sure @ features
    without = (total - sure[:, None] * features) / (weight - sure)[:, None]
    direction = np.linalg.solve(covariance, (without - rest).T).T
    spread = np.sqrt(np.maximum(np.einsum("nc,nc->n", direction, without - rest), 1e-12))
    return np.asarray(np.einsum("nc,nc->n", direction, centred) / spread)


def neighbourhood(
    parts: NDArray[np.float32], seed: NDArray[np.float32], sure: FloatArray, context: NDArray[np.int64]
) -> FloatArray:
    """What a candidate's nearest neighbours are, by cosine less the tomogram's mean; shape (N, 4).

    The columns: mean probability of the nearest, the seeds being one of them and sure; cosine with the seeds, less
    that with the nearest; that with the nearest; that with the seeds. Where a candidate is alone, only the seeds are
    near it.

    Parameters
    ----------
    parts, seed, sure, context : as of `discriminant`
    """
    features = parts.astype(np.float64)
    mean = np.average(features, axis=0, weights=np.bincount(context, minlength=len(sure)))
    unit, unit_seed = to_unit(features - mean), to_unit(seed - mean)
    with_seeds = unit @ unit_seed
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    nearest = min(NEAREST, len(sure) - 1)
    near = np.sort(alike, axis=1)[:, len(sure) - nearest :].mean(axis=1) if nearest else with_seeds
    asked = np.column_stack([alike, with_seeds])
    which = np.argsort(-asked, axis=1, kind="stable")[:, : min(NEAREST, len(sure))]
    weight = np.maximum(np.take_along_axis(asked, which, axis=1), 0) + 1e-3
    said = np.append(sure, 1.0)[which]
    return np.column_stack([(weight * said).sum(axis=1) / weight.sum(axis=1), with_seeds - near, near, with_seeds])
