"""Writing several sets of picks of a run under one completion record; those of all clusters, for one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from copick_cryosam.errors import OutputError
from copick_cryosam.io.discover_job import REST, DiscoverJob
from copick_cryosam.io.job import PicksUri
from copick_cryosam.io.project import Project
from copick_cryosam.io.storage import storage_errors
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import AngstromPoints, FloatArray, Grid

__all__ = ["PicksSet", "SetsWriter", "SeveralWriter"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PicksSet:
    """Picks of one cluster or class in one run: Å, and scores of shape (N,), both best first."""

    points: AngstromPoints
    scores: FloatArray


class SeveralWriter(Writer):
    """`Writer` of jobs with more than one set of picks."""

    def _write_set(self, run: str, to: PicksUri, found: PicksSet, grid: Grid) -> str:
        if not (np.isfinite(found.points.xyz).all() and np.isfinite(found.scores).all()):
            raise OutputError(
                f"run {run}: expected finite positions and scores, found NaN or infinity",
                hint="Run again with --debug and report it",
            )
        place = self.project.run(run)
        picks = place.new_picks(to.object_name, to.session_id, to.user_id)
        # copick fills these in only when it loads picks; storing without them would erase the run's name.
        picks.meta.run_name = run
        picks.meta.voxel_spacing = grid.voxel_spacing
        picks.meta.trust_orientation = False
        picks.from_numpy(found.points.xyz, instance_ids=np.arange(1, len(found.points) + 1), scores=found.scores)
        return hashlib.sha256(place.fs_overlay.cat_file(picks.path)).hexdigest()


class SetsWriter(SeveralWriter):
    """`Writer` for discovery: a set of picks for each cluster, that of the rest always among them."""

    def __init__(self, project: Project, job: DiscoverJob) -> None:
        super().__init__(project, job)
        self.sets = job

    def write_sets(self, run: str, clusters: Mapping[str, PicksSet], grid: Grid, parameters: Mapping[str, Any]) -> str:
        """Write one run's sets by cluster, the completion record last; earlier ones of the same job are replaced.

        Raises
        ------
        OutputError
            See `Writer.state`; or the storage fails. Whatever was written by then is removed, as it is on any other
            exception.
        """
        self.state(run, parameters)
        everything = {**clusters, REST: clusters.get(REST) or _EMPTY}
        writing = {}
        for cluster, found in everything.items():
            to = self.sets.set_of(cluster)
            writing[f"picks {to}"] = partial(self._write_set, run, to, found, grid)
        picks = sum(len(one.points) for one in everything.values())
        try:
            return self._commit(run, writing, self._stored(run), picks, grid, parameters)
        except storage_errors() as error:
            raise self._failed(run, error) from None

    def _stored(self, run: str) -> dict[str, Any]:
        return {
            name: each
            for name, each in self._listing(run).items()
            if name.startswith("picks ") and self.sets.is_set(each.pickable_object_name, each.user_id, each.session_id)
        }

    def _path(self, run: str, which: str) -> str:
        # The session without a cluster's name is that of no picks, so no other job's record has this name.
        ending = {"record": "json", "marker": "started"}[which]
        to = self.sets.set_of("clusters")
        folder = super()._path(run, which).rsplit("/", 1)[0]
        return f"{folder}/{to.user_id}_{to.session_id}_{to.object_name}.{ending}"


_EMPTY = PicksSet(points=AngstromPoints(np.empty((0, 3))), scores=np.empty(0))
