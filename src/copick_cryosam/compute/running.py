"""Picking in every run of a job: seeds first, then one tomogram after the other."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from copick_cryosam.compute.averages import Averages
from copick_cryosam.compute.diagnosing import recorded, remarks
from copick_cryosam.compute.faults import detached, naming
from copick_cryosam.compute.outcomes import Listener, Outcome, Search, Summary
from copick_cryosam.compute.request import asked_for, is_stale
from copick_cryosam.compute.seeds import agreed, inside
from copick_cryosam.compute.tomograms import Tomograms
from copick_cryosam.config import Settings
from copick_cryosam.errors import CryosamError
from copick_cryosam.io.features import check_encoder
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import open_project
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import Grid, VoxelPoints

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from copick_cryosam.diagnosis import SeedDiagnosis
    from copick_cryosam.findings import Found, Seeded, Shortlist
    from copick_cryosam.matching import Query
    from copick_cryosam.pipeline import CryoSAM

__all__ = ["run_job"]

logger = logging.getLogger(__name__)


def run_job(job: Job, settings: Settings, listener: Listener | None = None) -> Summary:
    """Pick in every run of the job that is not finished, and write its results.

    Everything that can be refused is refused before the models are loaded. The query pools the seeds of all
    runs that have some; seeds that cannot be used are reported, and the others go on without them. Candidates of a few
    runs keep those of every other company (`AlignmentSettings.company`): of the first that have seeds, then of the
    first by name, whether they are searched in this call or were before, so that the order of searching and what was
    finished do not matter. A run that fails does not stop the others. At most one tomogram with its features is in
    memory at a time.

    Raises
    ------
    CryosamError
        The job as a whole is impossible: project, objects, seeds, overlay, device or models; no seeds could be
        used in any run; or they contradict each other.
    """
    work = _Work(job, settings, listener or Listener())
    outcomes = {run: work.skipped(run) for run in work.runs if run not in work.pending}
    work.listener.begun(len(work.pending))
    for skipped in outcomes.values():
        work.listener.run_ended(skipped)
    if not work.pending:
        return replace(work.summary(outcomes), average=work.averages.write())
    work.load()
    target = work.read_seeds()
    work.find_company(target)
    for run, error in target.failures.items():
        if run in work.pending:
            outcomes[run] = Outcome(run=run, state="failed", error=error, seconds=work.seconds.get(run, 0.0))
            work.listener.run_ended(outcomes[run])
    for run in work.in_search_order():
        if run not in outcomes:
            ended = work.search(run, target)
            work.listener.run_ended(ended)
            outcomes[run] = replace(ended, search=None)
    return replace(work.summary(outcomes, target), average=work.averages.write())


@dataclass(frozen=True, eq=False, kw_only=True)
class _Target:
    """What is looked for, and which seeds could not be used or are suspicious."""

    query: Query
    seeded: Sequence[Seeded]
    polarity: str
    diagnosis: Sequence[SeedDiagnosis]
    voxel_spacing: float
    failures: dict[str, CryosamError]


class _Work:
    """A job with its project open and its models loaded."""

    def __init__(self, job: Job, settings: Settings, listener: Listener) -> None:
        self.job, self.settings, self.listener = job, settings, listener
        if job.keep_embeddings:
            check_encoder(settings.encoder.name)
        self.averages = Averages(job, settings)
        self.project = open_project(job.config)
        self.runs = self.project.select_runs(job.runs)
        self.radius = self.project.object(job.seeds.object_name).radius
        self.negative_radius = (
            self.radius if job.negatives is None else self.project.object(job.negatives.object_name).radius
        )
        self.seeds = self.project.seeds(job)
        self.writer = Writer(self.project, job)
        self.writer.check(self.runs)
        self.asked = asked_for(settings, self.seeds)
        states = {run: self.writer.state(run, {}) for run in self.runs}
        self.pending = tuple(run for run in self.runs if job.overwrite or not states[run].done)
        for run in self.pending:
            if states[run] is OutputState.INTERRUPTED:
                logger.info("run %s was interrupted before; its partial results are removed", run)
                self.writer.clean(run)
        self.seconds: dict[str, float] = {}
        self.company: dict[str, Shortlist] = {}

    def load(self) -> None:
        """Load the models; not before it is known that something is to do."""
        from copick_cryosam.pipeline import CryoSAM

        self.model: CryoSAM = CryoSAM.from_settings(self.settings)
        self.models = {"encoder": self.model.encoder.signature, "segmenter": self.model.segmenter.signature}
        if self.model.rankers is not None:
            self.models["ranker"] = self.model.rankers.signature
        self.tomograms = Tomograms(self.job, self.project, self.model, self.radius, self.listener.progress)

    def skipped(self, run: str) -> Outcome:
        """The outcome of a run that was finished before."""
        record = self.writer.record(run) or {}
        picks = record.get("counts", {}).get("picks")
        return Outcome(run=run, state="skipped", picks=picks, stale=is_stale(record, self.job, self.asked))

    def summary(self, outcomes: dict[str, Outcome], target: _Target | None = None) -> Summary:
        """Everything in the order asked for."""
        failures = {} if target is None else target.failures
        return Summary(
            outcomes=tuple(outcomes[run] for run in self.runs),
            overlay=self.project.overlay,
            polarity=None if target is None else target.polarity,
            seed_failures={run: error for run, error in failures.items() if run not in self.pending},
            seed_remarks=() if target is None else tuple(remarks(target.diagnosis, target.voxel_spacing)),
        )

    def in_search_order(self) -> list[str]:
        """Runs that are to be searched."""
        return self.tomograms.open_first(self.pending)

    def read_seeds(self) -> _Target:
        """Segment and pool the seeds and negatives of all runs into one query (eq. 4).

        Raises
        ------
        SeedError
            Runs disagree on the polarity.
        CryosamError
            No seeds, or no negatives, could be used; the first run's error.
        """
        seeded: dict[str, Seeded] = {}
        negatives: dict[str, Seeded] = {}
        polarity: dict[str, str] = {}
        failures: dict[str, CryosamError] = {}
        # The last tomogram stays open; let it be one that is searched.
        for run in sorted(self.seeds.positive, key=lambda name: name in self.pending):
            try:
                seen, found, against = self._read_seeds_of(run, None)
            except CryosamError as error:
                failures[run] = self._failed(run, error)
                continue
            polarity[run] = seen
            seeded.update(found)
            negatives.update(against)
        if not seeded:
            raise next(iter(failures.values()))
        decided = agreed(polarity)
        for run in self.seeds.negative:
            if run not in self.seeds.positive:
                try:
                    negatives.update(self._read_seeds_of(run, decided)[2])
                except CryosamError as error:
                    failures[run] = self._failed(run, error)
        if self.seeds.negative and not negatives:
            raise next(iter(failures.values()))
        query = self.model.query(list(seeded.values()), list(negatives.values()))
        target = _Target(
            query=query,
            seeded=list(seeded.values()),
            polarity=decided,
            diagnosis=self.model.diagnose(seeded),
            voxel_spacing=self.tomograms.voxel_spacing,
            failures=failures,
        )
        for remark in remarks(target.diagnosis, target.voxel_spacing):
            logger.warning("%s", remark)
        return target

    def _read_seeds_of(self, run: str, polarity: str | None) -> tuple[str, dict[str, Seeded], dict[str, Seeded]]:
        """Polarity, seeds and negatives of a run. The tomogram is not returned: a caller would keep it alive."""
        self.listener.run_started(run, "seeds")
        began = time.perf_counter()
        positive, negative = self.seeds.positive.get(run), self.seeds.negative.get(run)
        found, against = {}, {}
        try:
            with naming(run, self.settings):
                volume = self.tomograms.unread(run)
                points = None if positive is None else inside(positive, volume.grid, run, "seeds")
                others = None if negative is None else inside(negative, volume.grid, run, "negatives")
                opened = self.tomograms.open(run, volume, points, polarity)
                spacing = volume.grid.voxel_spacing
                if points is not None:
                    found[run] = self.model.seed(opened.tomogram, points, self.radius / spacing)
            if others is not None:
                with naming(run, self.settings, ", negatives"):
                    against[run] = self.model.seed(
                        opened.tomogram, others, self.negative_radius / spacing, wanted=False
                    )
        finally:
            self.seconds[run] = time.perf_counter() - began
        self.tomograms.hold_to(run, spacing)
        return opened.tomogram.polarity, found, against

    def find_company(self, target: _Target) -> None:
        """Make the shortlists of the runs that keep others company; what fails here fails again, and is told, there."""
        wanted = self.settings.alignment.company + 1
        if self.model.rankers is None or wanted < 2 or len(self.runs) < 2:
            return
        order = sorted(self.runs, key=lambda run: (run not in self.seeds.positive, run))
        found: dict[str, Shortlist] = {}
        for run in [*self.tomograms.open_first(order[:wanted]), *order[wanted:]]:
            if len(found) == wanted:
                break
            if run in target.failures:
                continue
            self.listener.run_started(run, "look")
            began = time.perf_counter()
            try:
                with naming(run, self.settings):
                    found[run], _, _ = self._shortlist(run, target)
            except CryosamError as error:
                logger.info("run %s keeps others no company: %s", run, self._failed(run, error))
            self.seconds[run] = self.seconds.get(run, 0.0) + time.perf_counter() - began
        self.company = dict(sorted(found.items()))
        if len(found) > 1 and not found.keys().isdisjoint(self.pending):
            self._share(target)

    def _share(self, target: _Target) -> None:
        """Let those that keep each other company compete once for all of them."""
        began = time.perf_counter()
        radius_vox = self.radius / target.voxel_spacing
        shared = self.model.share(list(self.company.values()), radius_vox, progress=self.listener.progress)
        self.company = dict(zip(self.company, shared, strict=True))
        for run in self.company:
            self.seconds[run] += (time.perf_counter() - began) / len(shared)

    def _company_of(self, run: str) -> dict[str, Shortlist]:
        """Shortlists of others that may keep a run company, of which `CryoSAM.rank` asks the first."""
        return {other: one for other, one in self.company.items() if other != run and one.look is not None}

    def search(self, run: str, target: _Target) -> Outcome:
        """Search one run and write its results."""
        self.listener.run_started(run, "search")
        began = time.perf_counter()
        try:
            with naming(run, self.settings):
                found, grid = self._find(run, target)
                self.writer.write(run, found.instances, grid, self._parameters(run, found, target))
        except CryosamError as error:
            return Outcome(run=run, state="failed", error=self._failed(run, error), seconds=time.perf_counter() - began)
        finally:
            self.tomograms.close()
        seeds = self.seeds.positive.get(run)
        return Outcome(
            run=run,
            state="done",
            picks=len(found.instances),
            seconds=time.perf_counter() - began + self.seconds.get(run, 0.0),
            search=Search(
                found=found,
                grid=grid,
                seeds=VoxelPoints(np.empty((0, 3))) if seeds is None else grid.to_voxels(seeds),
                radius=self.radius,
                models=self.models,
                diagnosis=[one for one in target.diagnosis if one.run == run],
            ),
        )

    def _find(self, run: str, target: _Target) -> tuple[Found, Grid]:
        if run in self.company:
            shortlist = self.company[run]
            volume, grid = self.tomograms.without_features(run, target.polarity)
        else:
            shortlist, volume, grid = self._shortlist(run, target)
            # the features have told all they know
            self.tomograms.close()
        radius_vox = self.radius / grid.voxel_spacing
        seeds = self.seeds.positive.get(run)
        found = self.model.finish(
            volume,
            shortlist,
            target.seeded,
            radius_vox,
            company=list(self._company_of(run).values()),
            progress=self.listener.progress,
            known=None if seeds is None else grid.to_voxels(seeds),
            boxes=self.averages.boxes,
        )
        self.averages.add(found.particles, grid.voxel_spacing, radius_vox)
        # Painting the labels needs memory of its own.
        self.tomograms.close()
        return found, grid

    def _shortlist(self, run: str, target: _Target) -> tuple[Shortlist, NDArray[np.float32], Grid]:
        """A run's candidates, the tomogram they are in, and its grid."""
        volume = self.tomograms.unread(run)
        roi = None if self.job.roi is None else self.project.roi(run, self.job.roi, volume.grid)
        opened = self.tomograms.opened(run, volume, target.polarity)
        shortlist = self.model.shortlist(
            opened.tomogram,
            target.query,
            target.seeded,
            self.radius / opened.grid.voxel_spacing,
            roi=roi,
            progress=self.listener.progress,
        )
        return shortlist, opened.tomogram.volume, opened.grid

    def _parameters(self, run: str, found: Found, target: _Target) -> dict[str, Any]:
        threshold = found.threshold if math.isfinite(found.threshold) else None
        return {
            **self.asked,
            "models": self.models,
            "device": str(self.model.device),
            "result": {
                "polarity": target.polarity,
                "wedge": None if found.wedge is None else asdict(found.wedge),
                "threshold": threshold,
                "proposals": len(found.proposals),
                "decodes": found.decodes,
                "company": list(self._company_of(run))[: self.settings.alignment.company],
                "unused_seed_runs": sorted(target.failures),
                "seed_diagnosis": recorded(target.diagnosis, target.voxel_spacing),
            },
        }

    def _failed(self, run: str, error: CryosamError) -> CryosamError:
        logger.debug("run %s failed", run, exc_info=error)
        self.tomograms.close()
        return detached(error)
