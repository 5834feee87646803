"""The real job on the demo's project, its scores against the truth, and the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from copick_cryosam.baseline import pick_blobs
from copick_cryosam.compute import Listener, Summary, run_job
from copick_cryosam.compute.outcomes import Search
from copick_cryosam.compute.reporting import ReportCollector, run_report
from copick_cryosam.config import Settings
from copick_cryosam.contrast import brighten, standardise
from copick_cryosam.demo.scene import SEED, TOMOGRAM, TRUTH, report_name
from copick_cryosam.evaluation import LocalizationScores, exclude_seeds, localization, pool
from copick_cryosam.io.job import Job, PicksUri
from copick_cryosam.io.picks import read_picks
from copick_cryosam.io.project import Project, open_project
from copick_cryosam.io.writing import Writer
from copick_cryosam.report import Report, RunReport, write_report
from copick_cryosam.types import AngstromPoints, FloatArray

__all__ = ["ObjectScore", "RunScore", "pick_and_score"]


@dataclass(frozen=True, eq=False, kw_only=True)
class RunScore:
    """How the picks of one run, and those of a difference of Gaussians, agree with the truth; without the seed."""

    run: str
    picks: LocalizationScores
    blobs: LocalizationScores


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectScore:
    """One object's scores at a tolerance of one radius, and where its report lies."""

    object_name: str
    runs: tuple[RunScore, ...]
    report: Path

    @property
    def picks(self) -> LocalizationScores:
        """All runs counted together."""
        return pool([one.picks for one in self.runs])

    @property
    def blobs(self) -> LocalizationScores:
        """All runs counted together, for the difference of Gaussians."""
        return pool([one.blobs for one in self.runs])


def pick_and_score(
    config: Path, object_name: str, settings: Settings, listener: Listener | None = None
) -> tuple[Summary, ObjectScore | None]:
    """Pick an object in every tomogram of the demo's project from its one seed, and score the result.

    Returns
    -------
    What became of the runs, and the scores; None in place of scores where a run failed.

    Raises
    ------
    CryosamError
        The job as a whole is impossible, or the report cannot be written.
    """
    job = Job.create(config=str(config), tomogram=TOMOGRAM, seeds=f"{object_name}:{SEED[0]}/{SEED[1]}", overwrite=True)
    results = ReportCollector(listener or Listener())
    summary = run_job(job, settings, results)
    if not summary.succeeded:
        return summary, None
    project = open_project(job.config)
    truth = read_picks(project, PicksUri(object_name, *TRUTH))
    scores, pages = [], []
    for run, search in results.searches.items():
        one = _score(project, job, run, search, truth[run][0], summary.polarity or "dark")
        scores.append(one)
        pages.append(_page(project, job, search, one, truth[run][0]))
    path = config.parent / report_name(object_name)
    record = Writer(project, job).record(scores[0].run) or {}
    write_report(
        Report(
            title=f"{object_name}: one seed, {len(scores)} simulated tomograms",
            runs=pages,
            parameters=record.get("parameters", {}),
            versions=record.get("versions", {}),
            command=f"copick inference cryosam -c {config} -t {TOMOGRAM} -i {job.seeds} -o {job.output} "
            f"--preset {settings.preset} --overwrite",
            warnings=["These tomograms are simulated. Real ones are harder in ways that a simulation does not know."],
        ),
        path,
    )
    return summary, ObjectScore(object_name=object_name, runs=tuple(scores), report=path)


def _score(project: Project, job: Job, run: str, search: Search, truth: AngstromPoints, polarity: str) -> RunScore:
    """Picks are read back from the project: what is scored is what a user would find there."""
    seeds = search.grid.to_angstrom(search.seeds)
    points, values = read_picks(project, job.output, [run])[run]
    volume = standardise(project.tomogram(run, job.tomogram).read())
    radius_vox = search.radius / search.grid.voxel_spacing
    blobs = pick_blobs(brighten(volume, "dark" if polarity == "dark" else "light"), radius_vox)
    return RunScore(
        run=run,
        picks=_without_seeds(points, values, truth, seeds, search.radius),
        blobs=_without_seeds(search.grid.to_angstrom(blobs.points), blobs.score, truth, seeds, search.radius),
    )


def _without_seeds(
    points: AngstromPoints, values: FloatArray | None, truth: AngstromPoints, seeds: AngstromPoints, tolerance: float
) -> LocalizationScores:
    kept, asked = exclude_seeds(points, truth, seeds, tolerance)
    return localization(
        AngstromPoints(points.xyz[kept]),
        None if values is None else values[kept],
        AngstromPoints(truth.xyz[asked]),
        tolerance,
    )


def _page(project: Project, job: Job, search: Search, score: RunScore, truth: AngstromPoints) -> RunReport:
    return replace(
        run_report(project, job, score.run, search),
        truth=truth,
        scores=score.picks,
        baseline_scores=score.blobs,
        notes=["Scores leave the seed out."] if len(search.seeds) else [],
    )
