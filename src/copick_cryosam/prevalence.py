"""How many of a tomogram's candidates are particles: as many as the evidence says, not as many as in training.

A probability that was learned where one candidate in twelve was right is too high where one in fifty is, and too low
where half of them are. The share is unknown, but the probabilities themselves tell it: expectation maximisation over
the candidates of one tomogram finds the share under which they are most likely (Saerens, Latinne and Decaestecker,
Neural Computation 14, 2002, eq. 2.9).
Few candidates tell little, so the share `NEUTRAL` counts as much as `STRENGTH` of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.types import FloatArray

NEUTRAL = 0.15
"""Share of particles under which the ranking's probabilities stay what they are.

Of the candidates that it learned on, 8 in 100 were particles; more make it more careful. Chosen, as `STRENGTH`, on
simulated tomograms of three kinds: three particles of each of many kinds, crowded ones, and many of one kind alone.
"""
STRENGTH = 50.0
"""Candidates that the neutral share is worth."""
_ROUNDS = 200
_SETTLED = 1e-7


def at_own_share(probability: FloatArray, context: NDArray[np.int64]) -> FloatArray:
    """Probabilities under the tomogram's own share of particles, in the same order.

    Parameters
    ----------
    probability : of each candidate as it was learned, shape (N,)
    context : the candidates that the tomogram has, by index, repeated as often as each counts; see `second_look.choose`
    """
    counts = np.bincount(context, minlength=len(probability)).astype(np.float64)
    share, adjusted = NEUTRAL, probability
    for _ in range(_ROUNDS):
        adjusted = _under(probability, share)
        found = float((STRENGTH * NEUTRAL + counts @ adjusted) / (STRENGTH + counts.sum()))
        if abs(found - share) < _SETTLED:
            break
        share = found
    return adjusted


def _under(probability: FloatArray, share: float) -> FloatArray:
    """Bayes' rule with another prior."""
    right = probability * share / NEUTRAL
    wrong = (1 - probability) * (1 - share) / (1 - NEUTRAL)
    return np.asarray(right / np.maximum(right + wrong, 1e-300), dtype=np.float64)
