"""A trained detector in every run of a job, one tomogram after the other."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from copick_cryosam.compute.faults import detached, naming
from copick_cryosam.compute.outcomes import Listener, Outcome, Summary
from copick_cryosam.compute.planning import PlannedRun
from copick_cryosam.compute.request import state_of
from copick_cryosam.config import Device, override
from copick_cryosam.errors import CryosamError, NotFoundError
from copick_cryosam.io.project import open_project
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.sasi_job import DetectionJob
from copick_cryosam.io.volume import TomogramVolume
from copick_cryosam.io.writing_detections import DetectionsWriter
from copick_cryosam.io.writing_sets import PicksSet
from copick_cryosam.types import Grid, centroids

if TYPE_CHECKING:
    from copick_cryosam.sasi.inference import Detection, Sasi

__all__ = ["DetectionOptions", "plan_detection", "run_detection"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """What may differ from the settings in the model.

    Attributes
    ----------
    min_score : particles of a lower one are dropped; None: as the model says
    batch : windows in one call; None: as the model says
    device : where to compute
    """

    min_score: float | None = None
    batch: int | None = None
    device: Device = "auto"


def plan_detection(job: DetectionJob, options: DetectionOptions) -> list[PlannedRun]:
    """What `run_detection` would do. Nothing is written and no voxel is read.

    Raises
    ------
    CryosamError
        The job as a whole is impossible.
    """
    work = _Work(job, options, Listener())
    planned = []
    for run in work.runs:
        state, pending = work.states[run].value, run in work.pending
        try:
            grid = work.tomogram(run).grid
        except CryosamError as error:
            planned.append(PlannedRun(run=run, state=state, pending=pending, error=error))
        else:
            planned.append(PlannedRun(run=run, state=state, pending=pending, grid=grid))
    return planned


def run_detection(job: DetectionJob, options: DetectionOptions, listener: Listener | None = None) -> Summary:
    """Find the particles of every class in every run that is not finished, and write picks and a segmentation.

    A run that fails does not stop the others. One tomogram is in memory at a time.

    Raises
    ------
    CryosamError
        The job as a whole is impossible: model, project, objects, overlay or device; or the tomograms asked for are
        of another voxel spacing than the model's.
    """
    work = _Work(job, options, listener or Listener())
    outcomes = {run: work.skipped(run) for run in work.runs if run not in work.pending}
    work.writer.check(work.runs)
    work.listener.begun(len(work.pending))
    for skipped in outcomes.values():
        work.listener.run_ended(skipped)
    if work.pending:
        work.load()
        work.clean()
    for run in work.pending:
        outcomes[run] = work.search(run)
        work.listener.run_ended(outcomes[run])
    return Summary(
        outcomes=tuple(outcomes[run] for run in work.runs),
        overlay=work.project.overlay,
        polarity=work.record.polarity if work.pending else None,
    )


class _Work:
    """A job with its project open and its model's record read."""

    def __init__(self, job: DetectionJob, options: DetectionOptions, listener: Listener) -> None:
        from copick_cryosam.devices import resolve_device
        from copick_cryosam.sasi.inference import check_spacing
        from copick_cryosam.sasi.model import read_record

        self.job, self.options, self.listener = job, options, listener
        self.record = read_record(job.model)
        stated = {"min_score": options.min_score, "batch": options.batch}
        given = {name: value for name, value in stated.items() if value is not None}
        self.settings = override(self.record.settings, {"inference": given})
        self._check_spacing = check_spacing
        if job.tomogram.voxel_spacing is not None:
            check_spacing(self.record.voxel_spacing, job.tomogram.voxel_spacing)
        self.device = resolve_device(options.device)
        self.project = open_project(job.config)
        self.runs = self.project.select_runs(job.runs)
        self.objects = tuple(one.name for one in self.record.classes)
        self.writer = DetectionsWriter(self.project, job, self.objects)
        try:
            self.writer.labels()
        except NotFoundError as error:
            raise NotFoundError(
                f"model {job.model}: {error.message}",
                hint=f"Its objects are {', '.join(self.objects)}; add those missing to pickable_objects",
            ) from None
        self.asked: dict[str, Any] = {
            "model": {
                "sha256": self.record.sha256,
                "architecture": self.record.architecture,
                "classes": list(self.objects),
            },
            "inference": self.settings.inference.model_dump(mode="json", exclude={"batch"}),
        }
        self.states = {run: state_of(self.writer, run, self.asked) for run in self.runs}
        self.pending = tuple(run for run in self.runs if job.overwrite or not self.states[run].done)

    def clean(self) -> None:
        """Remove what killed runs left."""
        for run in self.pending:
            if self.states[run] is OutputState.INTERRUPTED:
                logger.info("run %s was interrupted before; its partial results are removed", run)
                self.writer.clean(run)

    def load(self) -> None:
        """Load the model; not before it is known that something is to do."""
        from copick_cryosam.sasi.inference import Sasi
        from copick_cryosam.sasi.model import load_model

        self.sasi: Sasi = Sasi(load_model(self.job.model, self.device), self.device, self.settings.inference)

    def skipped(self, run: str) -> Outcome:
        """The outcome of a run that was finished before."""
        picks = (self.writer.record(run) or {}).get("counts", {}).get("picks")
        return Outcome(run=run, state="skipped", picks=picks, stale=self.states[run] is OutputState.STALE)

    def tomogram(self, run: str) -> TomogramVolume:
        """The run's tomogram, unread.

        Raises
        ------
        InputError
            Its voxel spacing is not the model's.
        """
        volume = self.project.tomogram(run, self.job.tomogram)
        with naming(run, self.settings):
            self._check_spacing(self.record.voxel_spacing, volume.grid.voxel_spacing)
        return volume

    def search(self, run: str) -> Outcome:
        """Search one run and write its results."""
        self.listener.run_started(run, "search")
        began = time.perf_counter()
        try:
            with naming(run, self.settings):
                volume = self.tomogram(run)
                data = volume.read(partial(self.listener.progress, "read"))
                found = self.sasi.detect(data, voxel_spacing=volume.grid.voxel_spacing, progress=self.listener.progress)
                del data
                picks = self._write(run, found, volume.grid)
        except CryosamError as error:
            logger.debug("run %s failed", run, exc_info=error)
            return Outcome(run=run, state="failed", error=detached(error), seconds=time.perf_counter() - began)
        return Outcome(run=run, state="done", picks=picks, seconds=time.perf_counter() - began)

    def _write(self, run: str, found: Detection, grid: Grid) -> int:
        picks = {
            name: PicksSet(
                points=grid.to_angstrom(centroids(some)),
                scores=np.array([one.score for one in some], dtype=np.float64),
            )
            for name, some in found.particles.items()
        }
        counts = {name: len(one.points) for name, one in picks.items()}
        result = {"polarity": self.record.polarity, "picks": counts}
        parameters = {**self.asked, "device": str(self.device), "result": result}
        self.writer.write_detections(run, picks, found.labels, grid, parameters)
        return sum(counts.values())
