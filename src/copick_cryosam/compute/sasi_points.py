"""Points of a training: those that a person vouches for, drawn by a seed, and pseudo-labels beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.compute.seeds import inside
from copick_cryosam.errors import InputError
from copick_cryosam.io.job import PicksUri, same_spacing
from copick_cryosam.io.picks import ScoredPicks, read_sets
from copick_cryosam.io.project import Project
from copick_cryosam.io.sasi_job import TrainingJob
from copick_cryosam.sasi.points import (
    MOST_PSEUDO,
    LabelledPoints,
    ParticleClass,
    TrainingTomogram,
    choose_shots,
    with_pseudo,
)
from copick_cryosam.types import Grid, VoxelPoints

__all__ = ["RunPoints", "gather", "recorded", "select"]

_UNREAD = np.empty((0, 0, 0), dtype=np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunPoints:
    """Points of one run: voxels of its tomogram's `grid`."""

    grid: Grid
    human: LabelledPoints
    pseudo: LabelledPoints


def gather(project: Project, job: TrainingJob) -> dict[str, RunPoints]:
    """Read all points of a job and open the tomograms that they lie in, without a voxel.

    Runs without points are left out unless the job names them.

    Raises
    ------
    SeedError
        There are none for one of the URIs, or some lie outside of their tomogram.
    InputError
        A pattern for points of a person means picks with scores, pseudo-labels have no scores from 0 to 1, or the
        tomograms differ in voxel spacing.
    NotFoundError, DataError
        Runs, tomograms or picks are not there or cannot be read.
    """
    runs = project.select_runs(job.runs)
    human = {uri: _sets(project, uri, runs, "input URI") for uri in job.points}
    pseudo = {uri: _sets(project, uri, runs, "pseudo-label URI") for uri in job.pseudo}
    for uri, sets in human.items():
        scored = [str(one) for each in sets.values() for one, (_, scores) in each.items() if scores is not None]
        if scored and "*" in f"{uri.user_id}{uri.session_id}":
            raise InputError(
                f"input URI {uri}: expected picks that a person vouches for, found scores in {scored[0]}",
                hint="Name the sets one by one with -i, and those that a program made with --pseudo",
            )
    for uri, sets in pseudo.items():
        _check_scored(uri, sets)
    gathered: dict[str, RunPoints] = {}
    first: tuple[str, float] | None = None
    for run in runs:
        mine = [sets.get(run, {}) for sets in (*human.values(), *pseudo.values())]
        if job.runs is None and not any(len(points) for each in mine for points, _ in each.values()):
            continue
        grid = project.tomogram(run, job.tomogram).grid
        first = first or (run, grid.voxel_spacing)
        if not same_spacing(grid.voxel_spacing, first[1]):
            raise InputError(
                f"run {run}: expected the voxel spacing {first[1]} of run {first[0]}, found {grid.voxel_spacing}",
                hint=f"Give the spacing with -t {job.tomogram.tomo_type}@{first[1]}",
            )
        gathered[run] = RunPoints(
            grid=grid,
            human=_labelled([sets.get(run, {}) for sets in human.values()], job, grid, run, None),
            pseudo=_labelled([sets.get(run, {}) for sets in pseudo.values()], job, grid, run, job.min_precision),
        )
    return gathered


def select(
    gathered: Mapping[str, RunPoints], classes: Sequence[ParticleClass], shots: int | None, seed: int
) -> list[TrainingTomogram]:
    """The points that are learned from; the tomograms' volumes are empty yet.

    Of the points of a person those that the seed draws, see `choose_shots`. Then pseudo-labels, the best first, each
    where no particle within one radius (of the larger of the two) has a point yet.

    Raises
    ------
    SeedError
        A class has too few points, or none.
    """
    unread = [TrainingTomogram(name=run, volume=_UNREAD, labelled=one.human) for run, one in gathered.items()]
    return [
        replace(one, labelled=with_pseudo(one.labelled, gathered[one.name].pseudo, classes))
        for one in choose_shots(unread, classes, shots, seed)
    ]


def recorded(
    tomograms: Sequence[TrainingTomogram],
    classes: Sequence[ParticleClass],
    grids: Mapping[str, Grid],
    held_out: Sequence[tuple[int, int]] = (),
) -> list[dict[str, Any]]:
    """Each point with its object, run, picks, position in Å (x, y, z) and weight, and whose it is; JSON types.

    Parameters
    ----------
    held_out : (tomogram, point) of those that only told when to stop
    """
    points = []
    for number, one in enumerate(tomograms):
        some = one.labelled
        positions = grids[one.name].to_angstrom(some.points).xyz
        for index in range(len(some)):
            weight = float(some.weights[index])
            points.append(
                {
                    "object": classes[int(some.classes[index]) - 1].name,
                    "run": one.name,
                    "picks": some.origins[index],
                    "position": [round(float(value), 3) for value in positions[index]],
                    "weight": weight,
                    "source": "human" if weight >= 1 else "pseudo",
                    "held_out": (number, index) in held_out,
                }
            )
    return points


_Sets = dict[str, dict[PicksUri, ScoredPicks]]


def _sets(project: Project, uri: PicksUri, runs: Sequence[str], field: str) -> _Sets:
    found = read_sets(project, uri, runs)
    if not any(len(points) for each in found.values() for points, _ in each.values()):
        raise project.no_picks(field, uri, runs)
    return found


def _labelled(
    sets: Sequence[Mapping[PicksUri, ScoredPicks]], job: TrainingJob, grid: Grid, run: str, least: float | None
) -> LabelledPoints:
    """Points of one run; `least` is the score that pseudo-labels must have, None: they are a person's."""
    points, classes, weights, origins = [np.empty((0, 3))], [np.empty(0, np.int64)], [np.empty(0)], []
    for uri, (positions, scores) in {uri: found for each in sets for uri, found in each.items()}.items():
        where = inside(positions, grid, run, "pseudo-labels" if least is not None else f"points of {uri.object_name}")
        weight = np.ones(len(where))
        if least is not None:
            weight = _precisions(scores, len(where), uri, run)
        kept = weight >= (0 if least is None else least)
        points.append(where.zyx[kept])
        weights.append(weight[kept] if least is None else np.minimum(weight[kept], MOST_PSEUDO))
        classes.append(np.full(int(kept.sum()), job.objects.index(uri.object_name) + 1, dtype=np.int64))
        origins += [str(uri)] * int(kept.sum())
    return LabelledPoints(
        points=VoxelPoints(np.concatenate(points)),
        classes=np.concatenate(classes),
        weights=np.concatenate(weights),
        origins=tuple(origins),
    )


def _check_scored(uri: PicksUri, sets: _Sets) -> None:
    """Refuse picks without scores. Only in some runs they are picks that all score 1, as where CryoSAM found no
    particles but its seeds: such scores cannot be told from none."""
    found = [(run, scores) for run, each in sets.items() for points, scores in each.values() if len(points)]
    if all(scores is None for _, scores in found):
        raise InputError(
            f"run {found[0][0]}, pseudo-labels {uri}: expected scores that are expected precisions, 0 to 1, found none",
            hint="Give picks of copick inference cryosam",
        )


def _precisions(scores: NDArray[np.float64] | None, count: int, uri: PicksUri, run: str) -> NDArray[np.float64]:
    if count == 0:
        return np.empty(0)
    if scores is None:
        return np.ones(count)  # picks that all score 1, see `_check_scored`
    if scores.min() < 0 or scores.max() > 1:
        found = f"{scores.min():g} to {scores.max():g}"
        raise InputError(
            f"run {run}, pseudo-labels {uri}: expected scores that are expected precisions, 0 to 1, found {found}",
            hint="Give picks of copick inference cryosam",
        )
    return scores
