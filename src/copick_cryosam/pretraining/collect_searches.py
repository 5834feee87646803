"""Search simulated pairs of tomograms for each of their kinds, through the stages that users run.

A pool's samples are crowded with several kinds; a user's tomogram may hold three particles of one, or nothing else, or
a few of many kinds. So of some searches particles are taken out, as if they had never been there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.alignment import Aligner
from copick_cryosam.errors import SeedError
from copick_cryosam.features import DenseFeatures
from copick_cryosam.findings import Tomogram
from copick_cryosam.matching import propose
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.pool import Sample
from copick_cryosam.pretraining.searches import Search
from copick_cryosam.second_look import (
    Look,
    Rank,
    choose,
    compete,
    compete_together,
    look_again,
    look_at_seeds,
    reference_of,
)
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints, centroids
from copick_cryosam.wedge import estimate_wedge

SEEDS = (1, 1, 1, 2, 3, 5)
"""How many seeds a search starts from, drawn with equal chances."""

FEWEST = 0.05
"""Least share of the particles of the kind that is left where some are taken out."""
FEWEST_OTHERS = 0.03
"""The same of all other kinds."""
SPARSE = 0.5
"""Largest share of both that is left in a sparse search."""


@dataclass(frozen=True, kw_only=True)
class Collecting:
    """How searches are made.

    Attributes
    ----------
    candidates : at most so many of a search are looked at
    sparse : share of searches in which half of all particles or more are taken out
    thin : of the other searches, share in which particles of the kind are taken out
    alone : of the other searches, share in which particles of other kinds are taken out
    company : share of kinds whose candidates in both tomograms compete together
    """

    candidates: int = 250
    sparse: float = 0.0
    thin: float = 0.35
    alone: float = 0.3
    company: float = 0.75


def collect(
    model: CryoSAM, sample: Sample, name: str, rng: np.random.Generator, rank: Rank, how: Collecting
) -> list[Search]:
    """All searches of one sample: each kind in each of its tomograms, from seeds in the first."""
    volumes = [np.asarray(volume, dtype=np.float32) for volume in sample.volumes]
    opened = [model.open(volume, None, 8.0, polarity="light") for volume in volumes]
    features = [_dense(one) for one in opened]
    wedges = [estimate_wedge(volume) for volume in volumes]
    searches = []
    for kind in np.unique(sample.kinds[0]):
        placed = list(zip(sample.centres, sample.kinds, strict=True))
        truths = [centres[kinds == kind] for centres, kinds in placed]
        others = [centres[kinds != kind] for centres, kinds in placed]
        radius = float(sample.radii[0][sample.kinds[0] == kind][0])
        clicks = _clicks(truths[0], radius, opened[0].volume.shape, rng)
        if clicks is None:
            continue
        try:
            seeded = model.seed(opened[0], clicks, radius)
        except SeedError:
            continue
        query = model.query([seeded])
        aligner = Aligner(radius, model.settings.alignment, model.device)
        at = centroids([one for one in seeded.instances if one.size])
        seeds = look_at_seeds(aligner, opened[0].volume, features[0], at, seeded.scores, wedges[0], radius)
        reference = reference_of(aligner, [seeds])
        looks: list[tuple[int, Proposals, NDArray[np.int64], Look]] = []
        for t, tomogram in enumerate(opened):
            proposals = propose(tomogram.features, query, radius, model.settings.matching)
            kept = clicks if t == 0 else None
            proposals = with_fewer(proposals, (truths[t], others[t]), radius, rng, how, kept)
            if len(proposals) < 3:
                continue
            chosen, context = choose(len(proposals), tomogram.volume.size, radius, how.candidates)
            proposals = proposals[chosen]
            look = look_again(
                aligner, tomogram.volume, features[t], wedges[t], proposals, reference, radius, rank, context
            )
            looks.append((t, proposals, context, look))
        if looks and rng.random() < how.company:
            fares = compete_together(aligner, [look for *_, look in looks])
        else:
            fares = [compete(aligner, look) for *_, look in looks]
        for (t, proposals, context, look), shared in zip(looks, fares, strict=True):
            # the seeds themselves are no lesson
            distance = np.linalg.norm(proposals.points.zyx[:, None] - clicks.zyx[None], axis=2).min(axis=1)
            searches.append(
                Search(
                    sample=name,
                    first=look.first,
                    correlation=look.aligned.score,
                    fits=shared.fits.T,
                    parts=look.parts,
                    seed_parts=look.seed_parts,
                    counts=np.bincount(context, minlength=len(proposals)),
                    averaged=look.averaged,
                    members=len(shared.seeds),
                    seeds=len(clicks),
                    truth=_is_true(proposals.points, truths[t], radius),
                    lesson=distance > radius if t == 0 else np.ones(len(proposals), dtype=bool),
                )
            )
    return searches


def _dense(tomogram: Tomogram) -> DenseFeatures:
    assert isinstance(tomogram.features, DenseFeatures)
    return tomogram.features


def _clicks(
    centres: NDArray[np.float64], radius: float, shape: tuple[int, ...], rng: np.random.Generator
) -> VoxelPoints | None:
    """Seeds about a quarter of the radius off their particles, at least one more particle than seeds."""
    margin = np.array([0.5, 1, 1]) * radius
    inner = np.flatnonzero(((centres > margin) & (centres < np.array(shape) - margin)).all(axis=1))
    count = min(int(rng.choice(SEEDS)), len(inner), len(centres) - 1)
    if count < 1:
        return None
    chosen = centres[rng.choice(inner, size=count, replace=False)]
    clicks = chosen + rng.normal(size=chosen.shape) * 0.15 * radius
    return VoxelPoints(np.clip(clicks, 0, np.array(shape) - 1))


def with_fewer(
    proposals: Proposals,
    truths: tuple[NDArray[np.float64], NDArray[np.float64]],
    radius: float,
    rng: np.random.Generator,
    how: Collecting,
    kept: VoxelPoints | None,
) -> Proposals:
    """Take particles out of some searches; `truths` are those of the kind and all others. See `thinned`."""
    sparse = rng.random() < how.sparse
    searches, fewest = (how.thin, how.alone), (FEWEST, FEWEST_OTHERS)
    for truth, share, least in zip(truths, searches, fewest, strict=True):
        if sparse or rng.random() < share:
            proposals = thinned(proposals, truth, radius, rng, (FEWEST, SPARSE) if sparse else (least, 1.0), kept)
    return proposals


def thinned(
    proposals: Proposals,
    truth: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
    shares: tuple[float, float],
    kept: VoxelPoints | None = None,
) -> Proposals:
    """Take particles out, as if the tomogram held fewer or none of them.

    How many a user's tomogram holds, nobody knows, and where to stop depends on it. Candidates within a radius of a
    particle that is taken out go with it.

    Parameters
    ----------
    truth : centres of the particles, voxels, shape (M, 3)
    shares : between which the share that is left is drawn, evenly in its logarithm
    kept : points whose particles stay: the seeds
    """
    if len(truth) == 0:
        return proposals
    share = np.exp(rng.uniform(*np.log(shares)))
    out = rng.random(len(truth)) >= share
    if kept is not None:
        out &= np.linalg.norm(truth[:, None] - kept.zyx[None], axis=2).min(axis=1) > radius
    distance = np.linalg.norm(proposals.points.zyx[:, None] - truth[None], axis=2)
    return proposals[~(out[distance.argmin(axis=1)] & (distance.min(axis=1) <= radius))]


def _is_true(points: VoxelPoints, truth: NDArray[np.float64], radius: float) -> FloatArray:
    """1 for the best candidate within a radius of each particle, 0 for the others; points are best first."""
    if len(truth) == 0:
        return np.zeros(len(points))
    distance = np.linalg.norm(points.zyx[:, None] - truth[None], axis=2)
    nearest = distance.argmin(axis=1)
    near = np.flatnonzero(distance.min(axis=1) <= radius)
    _, first = np.unique(nearest[near], return_index=True)
    true = np.zeros(len(points))
    true[near[first]] = 1
    return true
