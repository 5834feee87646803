"""What speaks for a candidate being a particle like the seeds: one row of numbers each.

The similarity of CryoSAM (eq. 6) is one column; others say how the candidate's middle, wall and surroundings
compare with the seeds', whether it looks like the other good candidates or rather like others (`neighbourhood`), how
well it can be turned into the seeds (`alignment`), and how all of that lies among the candidates of the same tomogram.
`ranker` makes a probability of it; how a candidate fares where classes compete for it comes after (`class_evidence`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.features import DenseFeatures
from copick_cryosam.fisher import fisher_z
from copick_cryosam.neighbourhood import discriminant, neighbourhood
from copick_cryosam.spheres import on_spheres, read_spheres
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints

_PARTED = 3
"""Of the spheres' `REGIONS`, those that belong to the particle; the surroundings hold others."""
LEAST = 1e-6
"""Probabilities nearer to 0 and 1 are taken for this near."""
_MANY = 250
"""More candidates than training saw in a tomogram count as so many."""
_BEST = 5
"""Candidates that stand for what a good one looks like."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Surfaces:
    """What lies on the spheres of `spheres.REGIONS` around points.

    Attributes
    ----------
    features : mean feature, unit length, shape (N, 4, C)
    foreground : mean probability of belonging to any particle, shape (N, 4)
    density : mean of the standardised tomogram, shape (N, 4)
    centre : probability of being a centre, at the point, shape (N,)
    """

    features: NDArray[np.float32]
    foreground: FloatArray
    density: FloatArray
    centre: FloatArray

    @property
    def parts(self) -> NDArray[np.float32]:
        """Features of middle, body and rim side by side, shape (N, 3 C)."""
        return self.features[:, :_PARTED].reshape(len(self.features), -1)

    def mean(self) -> Surfaces:
        """The mean over all points, as one point."""
        features = self.features.mean(axis=0, keepdims=True)
        return Surfaces(
            features=features / np.maximum(np.linalg.norm(features, axis=2, keepdims=True), 1e-6),
            foreground=self.foreground.mean(axis=0, keepdims=True),
            density=self.density.mean(axis=0, keepdims=True),
            centre=self.centre.mean(axis=0, keepdims=True),
        )


def surfaces(volume: NDArray[np.float32], features: DenseFeatures, points: VoxelPoints, radius_vox: float) -> Surfaces:
    """Look at the spheres around points; what lies outside the tomogram is its nearest edge.

    Raises
    ------
    ValueError
        The features know no foreground and no centres.
    """
    places = on_spheres(points, np.full(len(points), radius_vox))
    voxels = np.clip(np.round(places).astype(int), 0, np.array(volume.shape) - 1)
    seen, foreground, centre = read_spheres(features, points, places)
    return Surfaces(
        features=seen,
        foreground=foreground,
        density=volume[tuple(np.moveaxis(voxels, -1, 0))].mean(axis=-1).astype(np.float64),
        centre=centre,
    )


def first_evidence(
    proposals: Proposals,
    found: Surfaces,
    seeds: Surfaces,
    seed_scores: FloatArray,
    correlation: FloatArray,
    radius_vox: float,
    context: NDArray[np.int64],
) -> FloatArray:
    """Columns known after one comparison with the seeds, shape (N, F).

    Parameters
    ----------
    proposals : N candidates of one tomogram, best first
    found : of the candidates
    seeds : of all seeds
    seed_scores : scores of the seeds against the query
    correlation : rotational correlation with the seeds, shape (N,)
    radius_vox : of the object, voxels at the encoder's spacing
    context : the candidates among which each is seen, by index; see `second_look.choose`
    """
    seed = seeds.mean()
    similarity = fisher_z(proposals.score)
    cosines = np.einsum("nrc,rc->nr", found.features, seed.features[0])
    columns = [
        *among(similarity, context),
        similarity - float(fisher_z(seed_scores).mean()),
        fisher_z(proposals.similarity),
        np.log(found.centre + 1e-3),
        *cosines.T,
        *found.foreground.T,
        *np.abs(found.foreground - seed.foreground).T,
        *found.density.T,
        *(found.density - seed.density).T,
        *_company(found, similarity).T,
        *among(correlation, context),
        *everywhere(
            [math.log(radius_vox), math.log(min(len(context), _MANY)), math.log(len(seeds.centre))], len(proposals)
        ).T,
    ]
    return np.stack(columns, axis=1)


def second_evidence(
    first: FloatArray,
    correlation: FloatArray,
    parts: NDArray[np.float32],
    seed: NDArray[np.float32],
    sure: FloatArray,
    members: int,
    context: NDArray[np.int64],
) -> FloatArray:
    """Columns known after the comparison with the average of the seeds and the surest candidates, shape (N, F + 17).

    Parameters
    ----------
    first : of `first_evidence`
    correlation : rotational correlation with the average; with an average of the others, where a candidate is in it
    parts, seed : `Surfaces.parts` of the candidates, shape (N, P), and of the seeds' mean, shape (P,)
    sure : probability of each candidate after the first comparison, shape (N,)
    members : particles in the average
    context : as of `first_evidence`
    """
    gain = correlation - np.median(correlation[context])
    return np.column_stack(
        [
            first,
            *among(correlation, context),
            gain**2,
            np.full(len(first), math.log(members)),
            *among(discriminant(parts, seed, sure, context), context),
            neighbourhood(parts, seed, sure, context),
            _how_many(sure, context),
            log_odds(sure),
        ]
    )


def log_odds(probability: FloatArray) -> FloatArray:
    """Logarithm of p / (1 - p), kept finite."""
    believed = np.clip(probability, LEAST, 1 - LEAST)
    return np.asarray(np.log(believed / (1 - believed)))


def _how_many(probability: FloatArray, context: NDArray[np.int64]) -> FloatArray:
    """How many of a tomogram's candidates are believed to be particles, as a share and as a number; shape (N, 2)."""
    believed = probability[context]
    logarithms = [math.log(float(believed.mean()) + 1e-3), math.log(float(believed.sum()) + 0.1)]
    return everywhere(logarithms, len(probability))


def everywhere(numbers: Sequence[float], count: int) -> FloatArray:
    """The same numbers for each of `count` candidates, shape (count, M)."""
    return np.broadcast_to(numbers, (count, len(numbers)))


def among(values: FloatArray, context: NDArray[np.int64]) -> Sequence[FloatArray]:
    """Values as they are, and where they lie among the candidates of the tomogram."""
    middle = float(np.median(values[context]))
    spread = float(np.median(np.abs(values[context] - middle))) * 1.4826 + 0.01
    best = float(np.sort(values)[-3:].mean())
    return [values, values - middle, (values - middle) / spread, values - best]


def _company(found: Surfaces, similarity: FloatArray) -> FloatArray:
    """How much a candidate resembles the best others: cosines of middle and body, shape (N, 2)."""
    best = np.argsort(-similarity, kind="stable")[: _BEST + 1]
    cosines = np.einsum("nrc,mrc->rnm", found.features[:, :2], found.features[best, :2])
    own = np.arange(len(similarity))[:, None] == best[None]
    # the candidate itself is not company; without it, the last of the best is left out for the others
    counted = ~own
    counted[~own.any(axis=1), -1] = False
    totals = np.where(counted, cosines, 0).sum(axis=2) / np.maximum(counted.sum(axis=1), 1)
    return np.asarray(totals.T, dtype=np.float64)
