"""What SaSi is trained from: classes of particles, and a few labelled points in tomograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import SeedError
from copick_cryosam.types import FloatArray, VoxelPoints

MOST_PSEUDO = 0.999
"""Greatest weight of a pseudo-label: only what a person vouches for weighs 1."""


@dataclass(frozen=True, kw_only=True)
class ParticleClass:
    """One kind of particle; its number is its place in the list of classes, from 1, as 0 is background.

    Attributes
    ----------
    name : of the object
    radius_vox : voxels
    """

    name: str
    radius_vox: float


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledPoints:
    """Points of one tomogram.

    Attributes
    ----------
    points : voxels, N of them
    classes : number of each one's class, from 1; shape (N,)
    weights : how sure each is, 0 to 1; 1 for what a human said; shape (N,)
    origins : where each comes from, for the record: the URI of its picks; N of them
    """

    points: VoxelPoints
    classes: NDArray[np.int64]
    weights: FloatArray
    origins: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.points)
        if not len(self.classes) == len(self.weights) == len(self.origins) == count:
            raise ValueError(f"labelled points: expected {count} of each, found {len(self.classes)}")

    def __len__(self) -> int:
        return len(self.points)

    def only(self, which: NDArray[np.int64]) -> LabelledPoints:
        """Some of them."""
        return LabelledPoints(
            points=VoxelPoints(self.points.zyx[which]),
            classes=self.classes[which],
            weights=self.weights[which],
            origins=tuple(self.origins[i] for i in which),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingTomogram:
    """A tomogram to learn from.

    Attributes
    ----------
    name : of its run
    volume : standardised, particles bright; shape (Z, Y, X)
    labelled : its points; none at all where it only serves the parts that need no labels
    """

    name: str
    volume: NDArray[np.float32]
    labelled: LabelledPoints


def choose_shots(
    tomograms: Sequence[TrainingTomogram], classes: Sequence[ParticleClass], shots: int | None, seed: int
) -> list[TrainingTomogram]:
    """At most `shots` points of each class over all tomograms, drawn by `seed`; None keeps all.

    Points of a weight below 1, which no human vouched for, are kept beside those that are drawn.

    Raises
    ------
    SeedError
        A class has fewer points than `shots`, or none.
    """
    rng = np.random.default_rng(seed)
    kept: list[list[int]] = [[] for _ in tomograms]
    for number, one in enumerate(classes, start=1):
        there = [
            (t, i) for t, tomogram in enumerate(tomograms) for i in np.flatnonzero(tomogram.labelled.classes == number)
        ]
        sure = [(t, i) for t, i in there if tomograms[t].labelled.weights[i] >= 1]
        if not there:
            raise SeedError(f"{one.name}: expected at least one point, found none", hint="Give picks of it with -i")
        if shots is not None and len(sure) < shots:
            raise SeedError(
                f"{one.name}: expected at least {shots} points, found {len(sure)}",
                hint=f"Label more, or ask for --shots {len(sure)}" if sure else "Label some, or leave --shots out",
            )
        drawn = sure if shots is None else [sure[k] for k in sorted(rng.choice(len(sure), shots, replace=False))]
        for t, i in [*drawn, *(pair for pair in there if pair not in set(sure))]:
            kept[t].append(int(i))
    return [
        replace(tomogram, labelled=tomogram.labelled.only(np.array(sorted(some), dtype=np.int64)))
        for tomogram, some in zip(tomograms, kept, strict=True)
    ]


def with_pseudo(human: LabelledPoints, pseudo: LabelledPoints, classes: Sequence[ParticleClass]) -> LabelledPoints:
    """Pseudo-labels beside what humans vouch for: the best first, each where no particle within one radius, of the
    larger of the two, has a point yet."""
    radii = np.array([one.radius_vox for one in classes])
    points, radius = list(human.points.zyx), list(radii[human.classes - 1])
    kept = []
    for index in np.argsort(-pseudo.weights, kind="stable"):
        here, mine = pseudo.points.zyx[index], radii[pseudo.classes[index] - 1]
        if points and bool((np.linalg.norm(np.array(points) - here, axis=1) <= np.maximum(radius, mine)).any()):
            continue
        points.append(here)
        radius.append(mine)
        kept.append(int(index))
    added = pseudo.only(np.array(sorted(kept), dtype=np.int64))
    return LabelledPoints(
        points=VoxelPoints(np.concatenate([human.points.zyx, added.points.zyx])),
        classes=np.concatenate([human.classes, added.classes]),
        weights=np.concatenate([human.weights, added.weights]),
        origins=(*human.origins, *added.origins),
    )
