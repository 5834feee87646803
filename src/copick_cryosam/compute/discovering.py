"""Discovery in every run of a job: particles of any kind first, then one clustering over all runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.compute.faults import detached, naming
from copick_cryosam.compute.outcomes import Listener, Outcome, Summary
from copick_cryosam.compute.planning import PlannedRun
from copick_cryosam.compute.request import state_of
from copick_cryosam.config import Settings, override
from copick_cryosam.errors import CryosamError, InputError, NotFoundError, OutputError
from copick_cryosam.io.discover_job import REST, DiscoverJob
from copick_cryosam.io.project import ParticleObject, Project, open_project
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.volume import TomogramVolume
from copick_cryosam.io.writing_sets import PicksSet, SetsWriter
from copick_cryosam.types import AngstromPoints, Grid

if TYPE_CHECKING:
    from copick_cryosam.detections import Detections
    from copick_cryosam.pipeline import CryoSAM
    from copick_cryosam.ranker import PeakRankers

__all__ = ["Discovered", "Discovery", "DiscoveryOptions", "plan_discovery", "run_discovery"]

logger = logging.getLogger(__name__)

_ASKED = 3
"""Tomograms from which the polarity is decided; those of one type in one project look alike."""


@dataclass(frozen=True, kw_only=True)
class DiscoveryOptions:
    """What decides the result beside the settings.

    Attributes
    ----------
    radius_range : Å, radii that are kept; None: all that the encoder can see
    clusters : how many; None: found automatically
    max_picks : at most so many per tomogram
    """

    radius_range: tuple[float, float] | None = None
    clusters: int | None = None
    max_picks: int | None = None

    def __post_init__(self) -> None:
        if self.radius_range is not None and not 0 < self.radius_range[0] <= self.radius_range[1] < float("inf"):
            low, high = self.radius_range
            raise InputError(
                f"radius: expected a range above 0 Å, the smaller first, found {low:g} to {high:g}",
                hint="Give --radius R, or --min-radius and --max-radius, in Å",
            )
        for name, value in (("clusters", self.clusters), ("max picks", self.max_picks)):
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}", hint="Leave it out, or give more")


@dataclass(frozen=True, eq=False, kw_only=True)
class Discovered:
    """Particles of one run, and the cluster of each: 1, 2 and so on by falling size, 0 is the rest."""

    grid: Grid
    found: Detections
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Discovery:
    """What became of a discovery job; `runs` holds those that were searched now."""

    summary: Summary
    runs: Mapping[str, Discovered]
    radius: float
    """Å, of the object that the picks belong to."""
    models: Mapping[str, str]

    @property
    def clusters(self) -> dict[str, int]:
        """Particles in each cluster over all runs, the rest last."""
        labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in self.runs.values())])
        counts = {str(k): int((labels == k).sum()) for k in range(1, int(labels.max(initial=0)) + 1)}
        return {**counts, REST: int((labels == 0).sum())}


def plan_discovery(job: DiscoverJob, settings: Settings, options: DiscoveryOptions) -> list[PlannedRun]:
    """What `run_discovery` would do. Nothing is written and no voxel is read.

    Raises
    ------
    CryosamError
        The job as a whole is impossible.
    """
    work = _Work(job, settings, options, Listener())
    planned = []
    for run in work.runs:
        state, pending = work.states[run].value, run in work.pending
        try:
            grid = work.project.tomogram(run, job.tomogram).grid
        except CryosamError as error:
            planned.append(PlannedRun(run=run, state=state, pending=pending, error=error))
        else:
            planned.append(PlannedRun(run=run, state=state, pending=pending, grid=grid))
    return planned


def run_discovery(
    job: DiscoverJob, settings: Settings, options: DiscoveryOptions, listener: Listener | None = None
) -> Discovery:
    """Find particles of any kind in every run of the job and write a set of picks for each cluster.

    Clusters go over all runs together: either all are finished, or all are searched. A run that fails does not stop
    the others, which are then clustered without it. One tomogram with its features is in memory at a time; of each
    run only its particles are kept.

    Raises
    ------
    CryosamError
        The job as a whole is impossible: project, object, overlay, device or models; results of another call are
        there for some of the runs; or the polarity cannot be decided.
    """
    work = _Work(job, settings, options, listener or Listener())
    work.check()
    if not work.pending:
        outcomes = {run: work.skipped(run) for run in work.runs}
        for outcome in outcomes.values():
            work.listener.run_ended(outcome)
        return work.result(outcomes, {})
    return work.discover()


class _Work:
    """A job with its project open."""

    def __init__(self, job: DiscoverJob, settings: Settings, options: DiscoveryOptions, listener: Listener) -> None:
        self.job, self.settings, self.options, self.listener = job, settings, options, listener
        self.project = open_project(job.config)
        self.runs = self.project.select_runs(job.runs)
        self.object = _object(self.project, job)
        self.writer = SetsWriter(self.project, job)
        self.asked: dict[str, Any] = {
            "settings": {
                "encoder": settings.encoder.model_dump(mode="json"),
                "polarity": settings.polarity,
            },
            "radius_range": None if options.radius_range is None else list(options.radius_range),
            "clusters": options.clusters,
            "max_picks": options.max_picks,
            "runs": sorted(self.runs),
        }
        self.states = {run: state_of(self.writer, run, self.asked) for run in self.runs}
        every = all(state.done for state in self.states.values())
        self.pending = () if every and not job.overwrite else self.runs
        self.models: dict[str, str] = {}
        self.polarity: str | None = None

    def check(self) -> None:
        """Refuse now what could only fail after the work.

        Raises
        ------
        OutputError
            The overlay cannot be written, or some runs, not all, hold results of another call.
        """
        self.writer.check(self.runs)
        other = [run for run, state in self.states.items() if state is OutputState.STALE]
        if self.pending and other and not self.job.overwrite:
            raise OutputError(
                f"run {other[0]}: expected no output yet, found clusters of another call in {len(other)} of "
                f"{len(self.runs)} runs; clusters go over all runs together",
                hint="Search all runs again with --overwrite, or write to another session with -o",
            )

    def skipped(self, run: str) -> Outcome:
        """The outcome of a run that was finished before."""
        picks = (self.writer.record(run) or {}).get("counts", {}).get("picks")
        return Outcome(run=run, state="skipped", picks=picks, stale=self.states[run] is OutputState.STALE)

    def discover(self) -> Discovery:
        """Search all runs, cluster, write."""
        from copick_cryosam.grouping import group
        from copick_cryosam.pipeline import CryoSAM
        from copick_cryosam.ranker import load_peak_rankers

        # Without seeds there is nothing to turn candidates against, and no wedge to estimate.
        model = CryoSAM.from_settings(override(self.settings, {"alignment": {"second_look": False}}))
        rankers = load_peak_rankers()
        self.models = {"encoder": model.encoder.signature, "ranker": rankers.signature}
        self.listener.begun(len(self.runs))
        outcomes: dict[str, Outcome] = {}
        polarity = self._polarity(model)
        found: dict[str, tuple[Detections, Grid]] = {}
        for run in self.runs:
            self.listener.run_started(run, "search")
            began = time.perf_counter()
            try:
                found[run] = self._detect(model, rankers, run, polarity)
                # what becomes one pick is known when all runs were searched
                ended = Outcome(run=run, state="done", seconds=time.perf_counter() - began)
            except CryosamError as error:
                ended = self._failed(run, error, began)
            outcomes[run] = ended
            self.listener.run_ended(ended)
        grouped = group([one for one, _ in found.values()], self.options.clusters)
        runs = {
            run: Discovered(grid=grid, found=one, labels=labels)
            for (run, (_, grid)), (one, labels) in zip(found.items(), grouped, strict=True)
        }
        for run, one in runs.items():
            outcomes[run] = replace(outcomes[run], picks=len(one.found))
        done = self.result(outcomes, runs)
        # What is there was checked: results of this very call, left by a killed run, may be replaced.
        self.writer = SetsWriter(self.project, replace(self.job, overwrite=True))
        for run in runs:
            try:
                self._write(run, runs[run], list(done.clusters))
            except CryosamError as error:
                outcomes[run] = self._failed(run, error, time.perf_counter())
                self.listener.run_ended(outcomes[run])
        return self.result(outcomes, runs)

    def result(self, outcomes: dict[str, Outcome], runs: dict[str, Discovered]) -> Discovery:
        """Everything in the order asked for."""
        summary = Summary(
            outcomes=tuple(outcomes[run] for run in self.runs), overlay=self.project.overlay, polarity=self.polarity
        )
        done = {run: one for run, one in runs.items() if outcomes[run].state == "done"}
        return Discovery(summary=summary, runs=done, radius=self.object.radius, models=self.models)

    def _polarity(self, model: CryoSAM) -> Literal["dark", "light"]:
        """As told, or decided from the first tomograms that can be read; dark where none can, as all fail anyway."""
        from copick_cryosam.discovery import decide, evidence

        told = self.settings.polarity
        if told == "auto":
            seen = []
            for run in self.runs:
                try:
                    with naming(run, self.settings):
                        volume = self._tomogram(run)
                        seen.append(evidence(volume.read(), model.encoder, volume.grid.voxel_spacing))
                except CryosamError as error:
                    logger.debug("run %s does not tell the polarity", run, exc_info=error)
                if len(seen) == _ASKED:
                    break
            told = decide(seen) if seen else "dark"
        self.polarity = told
        return told

    def _detect(self, model: CryoSAM, rankers: PeakRankers, run: str, polarity: str) -> tuple[Detections, Grid]:
        from copick_cryosam.discovery import detect

        with naming(run, self.settings):
            volume = self._tomogram(run)
            spacing = volume.grid.voxel_spacing
            data = volume.read(partial(self.listener.progress, "read"))
            opened = model.open(
                data, None, 10.0, polarity=polarity, voxel_spacing=spacing, progress=self.listener.progress
            )
            found = detect(
                opened.features,
                rankers,
                voxel_spacing=spacing,
                radius_range=self.options.radius_range,
                max_picks=self.options.max_picks,
            )
        return found, volume.grid

    def _tomogram(self, run: str) -> TomogramVolume:
        return self.project.tomogram(run, self.job.tomogram)

    def _write(self, run: str, one: Discovered, clusters: list[str]) -> None:
        points = one.grid.to_angstrom(one.found.points).xyz
        sets = {}
        for cluster in clusters:
            mine = one.labels == (0 if cluster == REST else int(cluster))
            sets[cluster] = PicksSet(points=AngstromPoints(points[mine]), scores=one.found.probability[mine])
        result = {"polarity": self.polarity, "clusters": len(clusters) - 1}
        self.writer.write_sets(run, sets, one.grid, {**self.asked, "models": self.models, "result": result})

    def _failed(self, run: str, error: CryosamError, began: float) -> Outcome:
        logger.debug("run %s failed", run, exc_info=error)
        return Outcome(run=run, state="failed", error=detached(error), seconds=time.perf_counter() - began)


def _object(project: Project, job: DiscoverJob) -> ParticleObject:
    """The object that the picks will belong to; a project's objects are its owner's, none is added unasked."""
    name = job.output.object_name
    try:
        return project.object(name)
    except NotFoundError as error:
        entry = f'{{"name": "{name}", "is_particle": true, "label": 100, "radius": 100}}'
        raise NotFoundError(
            error.message,
            hint=f"Name one that is there with -o, or add {entry} to pickable_objects in the config",
        ) from None
