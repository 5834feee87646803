"""Keeps what the search of each run found until the report is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copick_cryosam.compute.outcomes import Listener, Outcome, Search, Summary, Task
from copick_cryosam.errors import InputError
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import Project, open_project
from copick_cryosam.io.writing import Writer
from copick_cryosam.report import Report, RunReport, write_report
from copick_cryosam.types import Volume

__all__ = ["ReportCollector", "run_report"]


class ReportCollector(Listener):
    """Passes everything on to another listener and keeps the results of runs that are done.

    Masks are kept cropped; tomograms are not kept but read again, one at a time, when the report is written.
    """

    def __init__(self, inner: Listener) -> None:
        self._inner = inner
        self.searches: dict[str, Search] = {}

    def begun(self, pending: int) -> None:
        self._inner.begun(pending)

    def run_started(self, run: str, task: Task) -> None:
        self._inner.run_started(run, task)

    def progress(self, stage: str, done: int, total: int) -> None:
        self._inner.progress(stage, done, total)

    def run_ended(self, outcome: Outcome) -> None:
        if outcome.search is not None:
            self.searches[outcome.run] = outcome.search
        self._inner.run_ended(outcome)

    def write(self, path: Path, job: Job, summary: Summary, command: str) -> Path:
        """Write the report on the runs that are done.

        Raises
        ------
        InputError
            No run is done, so there is nothing to report.
        OutputError
            The file cannot be written.
        """
        if not self.searches:
            raise InputError(
                f"report {path}: expected at least one run searched now, found none",
                hint="Search finished runs again with --overwrite",
            )
        project = open_project(job.config)
        record = Writer(project, job).record(next(iter(self.searches))) or {}
        report = Report(
            title=f"{job.seeds.object_name} in {job.tomogram}",
            runs=[run_report(project, job, run, search) for run, search in self.searches.items()],
            parameters=_shown(record.get("parameters", {})),
            versions={**record.get("versions", {}), **next(iter(self.searches.values())).models},
            command=command,
            warnings=[
                *(f"{remark[0].upper()}{remark[1:]}." for remark in summary.seed_remarks),
                *(f"Run {one.run} failed: {one.error}" for one in summary.outcomes if one.error is not None),
                *(f"Seeds of run {run} were not used: {error}" for run, error in summary.seed_failures.items()),
                *(f"Run {run} was finished before and is not shown." for run in summary.runs("skipped")),
            ],
        )
        return write_report(report, path)


def run_report(project: Project, job: Job, run: str, search: Search) -> RunReport:
    """The page section of one searched run; its tomogram is read when the report is written."""

    def volume() -> Volume:
        return project.tomogram(run, job.tomogram).read()

    found = search.found
    return RunReport(
        run_name=project.title(run),
        volume=volume,
        grid=search.grid,
        instances=found.instances,
        radius_angstrom=search.radius,
        color=project.object(job.seeds.object_name).color,
        seeds=search.seeds,
        candidates=found.proposals.score,
        candidate_threshold=found.threshold,
        diagnosis=search.diagnosis,
    )


def _shown(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without the diagnosis of the seeds, which has a table of its own."""
    result = {key: value for key, value in parameters.get("result", {}).items() if key != "seed_diagnosis"}
    return {**parameters, **({"result": result} if result else {})}
