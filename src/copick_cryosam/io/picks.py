"""Reading sets of picks with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from copick_cryosam.errors import DataError, InputError
from copick_cryosam.io.job import PicksUri
from copick_cryosam.io.project import Project
from copick_cryosam.io.storage import reason, storage_errors
from copick_cryosam.types import AngstromPoints, FloatArray

__all__ = ["ScoredPicks", "read_picks", "read_sets"]

ScoredPicks = tuple[AngstromPoints, FloatArray | None]
"""Positions in Å (x, y, z), shape (N, 3), and scores, shape (N,); None where the picks carry none."""


def read_picks(project: Project, uri: PicksUri, runs: Sequence[str] | None = None) -> dict[str, ScoredPicks]:
    """The picks that `uri` means, by run name; one set in each run.

    Runs without such a set of picks are left out; an empty set is kept. Positions include the shifts of
    the picks' transformations. copick stores a score of 1 where none was given, so picks that all score 1
    carry no scores.

    Raises
    ------
    NotFoundError
        The project has no such run, or its storage cannot be reached.
    InputError
        Several sets of picks match in one run; the message names them.
    DataError
        The picks cannot be read, or hold numbers that are not finite.
    """
    found: dict[str, ScoredPicks] = {}
    for run in project.select_runs(runs):
        matching = _matching(project, uri, run)
        if len(matching) > 1:
            raise InputError(
                f"picks {uri} in run {run}: expected one set, found {', '.join(sorted(matching))}",
                hint="Give object:user/session of one of them",
            )
        for name, picks in matching.items():
            found[run] = _read(picks, f"picks {name} of run {run}")
    return found


def read_sets(
    project: Project, uri: PicksUri, runs: Sequence[str] | None = None
) -> dict[str, dict[PicksUri, ScoredPicks]]:
    """The same where each run may have several sets: by run, and by the set's own URI.

    Raises
    ------
    NotFoundError, DataError
        As of `read_picks`.
    """
    return {
        run: {
            PicksUri(picks.pickable_object_name, picks.user_id, picks.session_id): _read(
                picks, f"picks {name} of run {run}"
            )
            for name, picks in sorted(_matching(project, uri, run).items())
        }
        for run in project.select_runs(runs)
    }


def _matching(project: Project, uri: PicksUri, run: str) -> dict[str, Any]:
    matching: dict[str, Any] = {}
    try:
        for each in project.run(run).picks:
            if uri.matches(each.pickable_object_name, each.user_id, each.session_id):
                # Where the overlay repeats picks of the static part, copick's own first choice counts.
                matching.setdefault(f"{each.pickable_object_name}:{each.user_id}/{each.session_id}", each)
    except storage_errors(ValueError, IndexError) as error:
        raise DataError(
            f"picks of run {run}: expected a readable folder, found: {reason(error)}", hint="Check the project"
        ) from None
    return matching


def _read(picks: Any, what: str) -> ScoredPicks:
    try:
        positions = np.asarray(picks.full_positions(), dtype=np.float64).reshape(-1, 3)
        stored = np.array([1.0 if point.score is None else point.score for point in picks.points], dtype=np.float64)
    except storage_errors(ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{what}: expected readable JSON, found: {reason(error)}", hint="Save them again") from None
    if not (np.isfinite(positions).all() and np.isfinite(stored).all()):
        raise DataError(f"{what}: expected finite numbers, found NaN or infinity", hint="Save them again")
    return AngstromPoints(positions), None if (stored == 1.0).all() else stored
