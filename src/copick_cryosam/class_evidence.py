"""What the classes that compete for a candidate say of it: one row of numbers each, with what was known before.

A correlation of 0.83 with another class against 0.66 with that of the seeds tells a look-alike for certain, 0.45
against 0.40 next to nothing: on Fisher's scale such differences can be compared, whatever the noise. And a candidate is
told by its company: it lies where the particles do, or where those do that another class has won.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.evidence import LEAST, among, everywhere, log_odds
from copick_cryosam.fisher import fisher_z
from copick_cryosam.types import FloatArray

_APART = 0.02
"""Particles and those of another class that are nearer to each other than this, Fisher z, count as so far apart."""
_BEYOND = 3.0
"""Farther than so many times the way from the others to the particles, nothing is told from how far."""


def third_evidence(
    first: FloatArray, probable: FloatArray, fits: FloatArray, members: int, context: NDArray[np.int64]
) -> FloatArray:
    """Columns known after the candidates were shared out among classes, shape (N, 22).

    Parameters
    ----------
    first : of `first_evidence`
    probable : probability of each candidate after the second comparison, shape (N,)
    fits : of `classification.Shared`, shape (C, N)
    members : particles in the class of the seeds
    context : as of `first_evidence`
    """
    believed = np.maximum(probable, LEAST)
    weight = believed / believed.sum()
    on_scale = fisher_z(fits)
    ours, rivals = on_scale[0], _rivals(on_scale)
    plain = _Ahead.of(margin(fits), weight, context)
    scaled = _Ahead.of(margin(on_scale), weight, context)
    constant = [plain.usual, plain.spread, math.log(members), math.log(1 + len(rivals))]
    return np.column_stack(
        [
            log_odds(probable),
            plain.values,
            plain.standing,
            plain.values - plain.usual,
            everywhere(constant, len(first)),
            # of the object, the tomogram and the seeds
            first[:, -3:],
            scaled.values,
            scaled.values - scaled.usual,
            scaled.standing,
            everywhere([scaled.usual, scaled.spread], len(first)),
            _levels(ours, rivals, weight),
            _sides(ours, rivals, weight),
        ]
    )


def margin(fits: FloatArray) -> FloatArray:
    """How much better candidates fit the class of the seeds than the best other, (C, N) -> (N,); 0 without another."""
    rivals = _rivals(fits)
    return fits[0] - rivals.max(axis=0) if len(rivals) else np.zeros(fits.shape[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class _Ahead:
    """Margins of candidates, and how they lie.

    Attributes
    ----------
    values : shape (N,)
    standing : in spreads of all candidates, from their middle, shape (N,)
    usual, spread : mean and standard deviation of what is believed to be particles
    """

    values: FloatArray
    standing: FloatArray
    usual: float
    spread: float

    @classmethod
    def of(cls, values: FloatArray, weight: FloatArray, context: NDArray[np.int64]) -> _Ahead:
        """`weight` : share of each candidate among what is believed to be particles, shape (N,)."""
        usual = float(weight @ values)
        spread = math.sqrt(float(weight @ (values - usual) ** 2))
        _, _, standing, _ = among(values, context)
        return cls(values=values, standing=standing, usual=usual, spread=spread)


def _rivals(fits: FloatArray) -> FloatArray:
    """Fits with the classes beside that of the seeds that there are."""
    return np.asarray(fits[1:][np.isfinite(fits[1:]).all(axis=1)])


def _levels(ours: FloatArray, rivals: FloatArray, weight: FloatArray) -> FloatArray:
    """Fit with the class of the seeds and best fit with another, from what particles usually have; and that.

    Parameters
    ----------
    ours, rivals : fits on Fisher's scale, shapes (N,) and (C, N)
    weight : of each candidate among the particles, shape (N,)

    Returns
    -------
    Shape (N, 3).
    """
    usual = float(weight @ ours)
    best = rivals.max(axis=0) if len(rivals) else np.zeros(len(ours))
    return np.column_stack([ours - usual, np.full(len(ours), usual), best - usual])


def _sides(ours: FloatArray, rivals: FloatArray, weight: FloatArray) -> FloatArray:
    """Whose side a candidate is on, between the particles and those that its best other class has won; shape (N, 3).

    The columns: margin against that class, 0 where its own lie and 1 where the particles do; how far these are apart;
    how many candidates have that class for their best other. All are 0 where that class has won nothing.

    Parameters
    ----------
    ours, rivals, weight : as of `_levels`
    """
    sides = np.zeros((len(ours), 3))
    nearest = rivals.argmax(axis=0) if len(rivals) else np.zeros(0, dtype=np.int64)
    for k, rival in enumerate(rivals):
        here = nearest == k
        ahead = ours - rival
        # those it has won, the more the clearer
        won = here * np.maximum(-ahead, 0) * np.maximum(rival, 0)
        if won.sum() > 0:
            theirs, particles = float(won @ ahead / won.sum()), float(weight @ ahead)
            way = max(particles - theirs, _APART)
            sides[here, 0] = np.clip((ahead[here] - theirs) / way, -_BEYOND, _BEYOND)
            sides[here, 1] = particles - theirs
            sides[here, 2] = math.log1p(here.sum())
    return sides
