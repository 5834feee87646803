"""The second look at the candidates: gather their evidence, turn them against the seeds, then against an average.

1. Every candidate is compared with the seeds: features on spheres around it, and rotational correlation.
2. What is surely like the seeds is averaged with them; the average has less noise than a seed.
3. Every candidate is compared with the average, those in it with an average of the others.
4. Groups of other candidates make averages of their own, and all compete for the candidates (`classification`);
   likely candidates of other tomograms take part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam.aligned import Aligned, Candidates, Member, Template, posed
from copick_cryosam.alignment import Aligner
from copick_cryosam.classification import Shared, share_out
from copick_cryosam.contenders import Contenders, Crowd
from copick_cryosam.evidence import Surfaces, first_evidence, second_evidence, surfaces
from copick_cryosam.features import DenseFeatures
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints
from copick_cryosam.wedge import Wedge

CONTEXT = 0.03
"""Candidates per cube of a radius' edge, as in training."""
LEAST_CONTEXT = 150
"""Candidates that are looked at in the smallest tomogram."""
AVERAGED = 10
"""The surest candidates that join the seeds in the average."""
SURE = 0.5
"""Probability that a candidate needs to join."""

Rank = Callable[[FloatArray], FloatArray]
"""From evidence (N, F) to probabilities (N,)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedLook:
    """The seeds of one tomogram as the second look sees them.

    Attributes
    ----------
    surfaces, boxes : of the seeds, at their masks' centroids
    scores : of the seeds against a query of their own
    """

    surfaces: Surfaces
    boxes: Candidates
    scores: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """All seeds brought into the frame of the first.

    Attributes
    ----------
    looks : the seeds, tomogram by tomogram
    poses : R and shift of each seed, in the order of `looks`
    template : their average
    """

    looks: Sequence[SeedLook]
    poses: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
    template: Template

    def members(self) -> list[Member]:
        """The seeds as `Aligner.averaged` takes them."""
        places = [(look.boxes, i) for look in self.looks for i in range(len(look.boxes))]
        return [(boxes, i, *pose) for (boxes, i), pose in zip(places, self.poses, strict=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Look:
    """What the second look found out about candidates.

    Attributes
    ----------
    first, second : evidence, (N, F) each
    parts, seed_parts : `Surfaces.parts` of the candidates, (N, P), and of the seeds' mean, (P,)
    centre : probability of being the centre of anything, (N,)
    sure : of being like the seeds, after the first comparison, (N,)
    aligned : to the average; those in it to an average of the others
    members : indices of the candidates that were averaged
    boxes : of the candidates
    seeds : in the average, too
    alone : of the seeds
    template : the average
    without : for each member the average of the others
    """

    first: FloatArray
    second: FloatArray
    parts: NDArray[np.float32]
    seed_parts: NDArray[np.float32]
    centre: FloatArray
    sure: FloatArray
    aligned: Aligned
    members: NDArray[np.int64]
    boxes: Candidates
    seeds: Sequence[Member]
    alone: Template
    template: Template
    without: Mapping[int, Template]

    @property
    def averaged(self) -> int:
        """Particles in the average."""
        return len(self.seeds) + len(self.members)

    @property
    def contenders(self) -> Contenders:
        """The candidates as they compete."""
        return Contenders(
            boxes=self.boxes,
            parts=self.parts,
            centre=self.centre,
            sure=self.sure,
            members=self.members,
            aligned=self.aligned,
        )


def look_at_seeds(
    aligner: Aligner,
    volume: NDArray[np.float32],
    features: DenseFeatures,
    points: VoxelPoints,
    scores: FloatArray,
    wedge: Wedge,
    radius_vox: float,
) -> SeedLook:
    """See `SeedLook`; `points` are the centroids of the seeds' masks."""
    return SeedLook(
        surfaces=surfaces(volume, features, points, radius_vox),
        boxes=aligner.look(torch.from_numpy(volume), points, wedge),
        scores=scores,
    )


def reference_of(aligner: Aligner, looks: Sequence[SeedLook]) -> Reference:
    """Align every seed to the first one, average, and once more to the average."""
    identity = (np.eye(3), np.zeros(3))
    template = aligner.template(looks[0].boxes, 0)
    count = sum(len(look.boxes) for look in looks)
    if count == 1:
        return Reference(looks=looks, poses=[identity], template=template)
    poses: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for _ in range(2):
        poses = []
        for look in looks:
            aligned = aligner.align(template, look.boxes)
            poses += list(zip(aligned.rotations, aligned.shifts, strict=True))
        # the first seed itself is the frame, whatever rotation of the grid fits it best
        back = poses[0][0].T
        poses = [(rotation @ back, shift) for rotation, shift in poses]
        reference = Reference(looks=looks, poses=poses, template=template)
        template = aligner.averaged(reference.members())
    return Reference(looks=looks, poses=poses, template=template)


def choose(proposals: int, voxels: int, radius_vox: float, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which proposals are looked at again, and among which of them each is seen.

    How far a candidate stands out depends on how many others there are to stand out from. The ranking was learned
    with about one candidate for every 33 cubes of a radius' edge, so in a large tomogram as many are meant; those
    beyond the best are drawn evenly and stand for what lies between them.

    Parameters
    ----------
    proposals : how many there are, best first
    voxels : of the tomogram, or of the region that was searched
    limit : at most so many are looked at

    Returns
    -------
    Indices of proposals, ascending; and indices into those, repeated as often as each counts.
    """
    meant = min(proposals, max(LEAST_CONTEXT, round(CONTEXT * voxels / radius_vox**3)))
    if meant <= limit:
        chosen = np.arange(meant)
        return chosen, chosen
    tail = limit // 4
    best = limit - tail
    drawn = best + ((np.arange(tail) + 0.5) * (meant - best) / tail).astype(np.int64)
    counts = np.concatenate([np.ones(best), np.full(tail, round((meant - best) / tail))]).astype(np.int64)
    return np.concatenate([np.arange(best), drawn]), np.repeat(np.arange(limit), counts)


def look_again(
    aligner: Aligner,
    volume: NDArray[np.float32],
    features: DenseFeatures,
    wedge: Wedge,
    proposals: Proposals,
    reference: Reference,
    radius_vox: float,
    rank: Rank,
    context: NDArray[np.int64],
) -> Look:
    """The second look at the proposals of one tomogram, at least one.

    Parameters
    ----------
    rank : of first evidence, decides who is averaged
    context : the candidates among which each is seen, of `choose`
    """
    boxes = aligner.look(torch.from_numpy(volume), proposals.points, wedge)
    aligned = aligner.align(reference.template, boxes)
    found = surfaces(volume, features, proposals.points, radius_vox)
    seen = _joined([look.surfaces for look in reference.looks])
    first = first_evidence(
        proposals,
        found,
        seen,
        np.concatenate([look.scores for look in reference.looks]),
        aligned.score,
        # the ranking knows sizes in the net's voxels
        float(features.grid.net_voxels(radius_vox)),
        context,
    )
    sure = rank(first)
    order = np.argsort(-sure, kind="stable")[:AVERAGED]
    members = order[sure[order] >= SURE]
    seeds = reference.members()
    poses = posed(boxes, members, aligned)
    template = aligner.averaged([*seeds, *poses]) if poses else reference.template
    again = aligner.align(template, boxes) if poses else aligned
    without = {}
    for left_out, i in enumerate(members):
        # a particle resembles an average that holds its own noise, in the pose in which it was averaged
        others = [*seeds, *(pose for k, pose in enumerate(poses) if k != left_out)]
        without[int(i)] = aligner.averaged(others)
        again = again.put(i, aligner.align(without[int(i)], boxes.only(i), near=aligned.rotations[i]))
    seed_parts = seen.mean().parts[0]
    return Look(
        first=first,
        second=second_evidence(first, again.score, found.parts, seed_parts, sure, len(seeds) + len(poses), context),
        parts=found.parts,
        seed_parts=seed_parts,
        centre=found.centre,
        sure=sure,
        aligned=again,
        members=members,
        boxes=boxes,
        seeds=seeds,
        alone=reference.template,
        template=template,
        without=without,
    )


def compete(aligner: Aligner, look: Look, others: Sequence[Look] = ()) -> Shared:
    """The candidates of a look shared out among classes; see `classification`.

    Parameters
    ----------
    others : at other tomograms, with the same seeds; their likely candidates take part
    """
    crowd = Crowd([look.contenders, *(other.contenders.only_likely() for other in others)])
    return share_out(aligner, crowd, look.seeds, look.alone)


def compete_together(aligner: Aligner, looks: Sequence[Look]) -> list[Shared]:
    """What `compete` gives each of several looks, at least one, with all others: a single competition tells of all."""
    crowd = Crowd([look.contenders for look in looks], searched=len(looks))
    shared = share_out(aligner, crowd, looks[0].seeds, looks[0].alone)
    ends = np.cumsum([len(look.boxes) for look in looks])[:-1]
    return [replace(shared, fits=fits) for fits in np.split(shared.fits, ends, axis=1)]


def refine_poses(aligner: Aligner, look: Look, which: NDArray[np.int64]) -> Aligned:
    """Poses of all candidates, those of some and of the averaged ones finer than the grid of rotations.

    The averaged ones come first, each against the others: the average of their finer poses is sharper, and the rest
    are refined against it. All of it stays in the frame of the first seed, from which classes drift as their members
    are turned again and again.
    """
    aligned = look.aligned
    for i, others in look.without.items():
        one = np.array([i])
        aligned = aligned.put(one, aligner.refine(others, look.boxes.only(one), aligned.only(one)))
    template = look.template
    if len(look.members):
        template = aligner.averaged([*look.seeds, *posed(look.boxes, look.members, aligned)])
    rest = np.setdiff1d(which, look.members)
    return aligned.put(rest, aligner.refine(template, look.boxes.only(rest), aligned.only(rest)))


def _joined(parts: Sequence[Surfaces]) -> Surfaces:
    return Surfaces(
        features=np.concatenate([one.features for one in parts]),
        foreground=np.concatenate([one.foreground for one in parts]),
        density=np.concatenate([one.density for one in parts]),
        centre=np.concatenate([one.centre for one in parts]),
    )
