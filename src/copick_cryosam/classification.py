"""Candidates compete for averages: 3D classification that starts from one click.

A look-alike correlates well with the average of the particles that are sought, but better with an average of its own
kind, of which the tomogram holds several. So beside the class of the seeds, groups of other candidates that resemble
each other make averages, and every likely candidate joins the class whose average it fits best: competitive alignment,
as in 3D classification of single particles (Scheres, Methods Enzymol. 482, 2010, 10.1016/S0076-6879(10)82012-9),
without its likelihoods.

A particle resembles an average that holds its own noise, so members are judged by the half of their class that they
are not in. A class that cannot be told from that of the seeds is dissolved; it may be particles like the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.aligned import Aligned, Member, Template
from copick_cryosam.alignment import Aligner
from copick_cryosam.contenders import Crowd
from copick_cryosam.evidence import log_odds
from copick_cryosam.types import FloatArray
from copick_cryosam.unit_vectors import to_unit

GROUPS = 12
"""Classes beside that of the seeds, at most."""
ROUNDS = 2
"""Times that the candidates are shared out."""
DENSE = 8
"""Candidates that a group starts with: one, and those most like it."""
FEWEST = 3
"""Members without which a group is none."""
MOST = 30
"""Members that a class is averaged from: those that fit it best."""
ODDS = 0.025
"""Correlation that the class of the seeds is given ahead for every unit of a candidate's log-odds to be like them."""
APART = 0.04
"""By how much the members of two classes, together, must fit their own better than each other's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Class:
    """Candidates that are averaged together.

    Attributes
    ----------
    members : indices, shape (M,)
    seeds : averaged with them, before them
    template : the average of both
    halves : the averages of its halves; None where there is but one particle, the seed
    """

    members: NDArray[np.int64]
    seeds: Sequence[Member]
    template: Template
    halves: tuple[Template, Template] | None

    def __len__(self) -> int:
        """Particles in the average."""
        return len(self.seeds) + len(self.members)

    def half_of(self, half: int) -> NDArray[np.int64]:
        """Members in one of the halves, 0 or 1."""
        rank = len(self.seeds) + np.arange(len(self.members))
        return np.asarray(self.members[rank % 2 == half])


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """How candidates were shared out.

    Attributes
    ----------
    seeds : the class of the seeds
    fits : correlation of all candidates of what is searched with each class, that of the seeds first;
        NaN where there is no such class; members to the half that they are not in; shape (1 + GROUPS, N)
    """

    seeds: Class
    fits: FloatArray


def share_out(aligner: Aligner, crowd: Crowd, seeds: Sequence[Member], template: Template) -> Shared:
    """Let the classes compete for the candidates.

    Parameters
    ----------
    crowd : of what is searched, and of others
    seeds : as they are averaged
    template : of the seeds alone
    """
    likely, members = crowd.likely, crowd.members
    alone = Class(members=np.zeros(0, dtype=np.int64), seeds=seeds, template=template, halves=None)

    def joined(which: NDArray[np.int64], posed: Aligned) -> Class:
        return _averaged(aligner, crowd, which, posed, seeds) if len(which) + len(seeds) > 1 else alone

    groups = dense_groups(crowd.parts, np.setdiff1d(likely, members), likely)
    classes = [joined(members, crowd.aligned), *(_grown(aligner, crowd, group) for group in groups)]
    found = [judge(aligner, one, crowd, likely) for one in classes]
    for left in reversed(range(ROUNDS)):
        shares = _shares(found, crowd)
        # without a competitor the seeds would win everything
        ours = joined(shares[0] if len(found) > 1 else members, found[0])
        enough = [k for k in range(1, len(found)) if len(shares[k]) >= FEWEST]
        classes = [ours, *(_averaged(aligner, crowd, shares[k], found[k], ()) for k in enough)]
        asked = likely if left else np.union1d(likely, crowd.searched)
        found = [judge(aligner, one, crowd, asked) for one in classes]
        own = [0, *(k for k in range(1, len(classes)) if apart(ours, found[0], classes[k], found[k]) >= APART)]
        classes, found = [classes[k] for k in own], [found[k] for k in own]
    return Shared(seeds=classes[0], fits=_fits([one.score[crowd.searched] for one in found]))


def dense_groups(
    parts: NDArray[np.float32], free: NDArray[np.int64], likely: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Groups of free candidates that resemble each other most, by cosine less the mean of the likely ones.

    Returns
    -------
    Indices of each, the densest group first, and in it the candidate around which it is densest.
    """
    unit = to_unit(parts.astype(np.float64) - parts[likely].astype(np.float64).mean(axis=0))
    groups: list[NDArray[np.int64]] = []
    while len(free) >= DENSE and len(groups) < GROUPS:
        alike = unit[free] @ unit[free].T
        # its own cosine is the greatest, but rounding may not say so
        np.fill_diagonal(alike, 2)
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :DENSE]
        group = nearest[np.take_along_axis(alike, nearest, axis=1).sum(axis=1).argmax()]
        groups.append(free[group])
        free = np.delete(free, group)
    return groups


def judge(aligner: Aligner, one: Class, crowd: Crowd, asked: NDArray[np.int64]) -> Aligned:
    """Some candidates against a class, its members against the half that they are not in.

    Parameters
    ----------
    asked : indices; a score of -1 stands for the others
    """
    others = np.setdiff1d(asked, one.members)
    templates = [one.template, *(one.halves or ())]
    whole, *halves = aligner.turn(templates)
    found = Aligned.none(len(crowd)).put(others, crowd.align(aligner, whole, others))
    for half, turned in enumerate(reversed(halves)):
        some = one.half_of(half)
        found = found.put(some, crowd.align(aligner, turned, some))
    return found


def apart(seeds: Class, to_seeds: Aligned, other: Class, to_other: Aligned) -> float:
    """How much better the members of two classes fit their own than each other's.

    Parameters
    ----------
    to_seeds, to_other : all likely candidates aligned to either, of `judge`
    """
    better = to_other.score - to_seeds.score
    own = float(better[other.members].mean())
    # a class of seeds alone has no candidate that could say how well it fits
    return own - (float(better[seeds.members].mean()) if len(seeds.members) else -own)


def _shares(found: Sequence[Aligned], crowd: Crowd) -> list[NDArray[np.int64]]:
    """Of each class the likely candidates that fit it best, best first, at most `MOST`."""
    likely = crowd.likely
    scores = np.stack([fit.score for fit in found])[:, likely]
    ahead = np.zeros_like(scores)
    ahead[0] = ODDS * log_odds(crowd.sure[likely])
    winner = (scores + ahead).argmax(axis=0)
    shares = []
    for k, score in enumerate(scores):
        mine = np.flatnonzero(winner == k)
        shares.append(likely[mine[np.argsort(-score[mine], kind="stable")][:MOST]])
    return shares


def _grown(aligner: Aligner, crowd: Crowd, group: NDArray[np.int64]) -> Class:
    """A group aligned to its first member, then to the average of that."""
    first = aligner.turn([aligner.template(*crowd.place(int(group[0])))])[0]
    aligned = Aligned.none(len(crowd)).put(group, crowd.align(aligner, first, group))
    made = _averaged(aligner, crowd, group, aligned, ())
    return _averaged(aligner, crowd, group, judge(aligner, made, crowd, group), ())


def _averaged(
    aligner: Aligner, crowd: Crowd, members: NDArray[np.int64], aligned: Aligned, seeds: Sequence[Member]
) -> Class:
    made = aligner.halved([*seeds, *crowd.posed(members, aligned)])
    return Class(members=members, seeds=seeds, template=made.whole, halves=made.halves)


def _fits(scores: Sequence[FloatArray]) -> FloatArray:
    fits = np.full((1 + GROUPS, len(scores[0])), np.nan)
    fits[: len(scores)] = scores
    return fits
