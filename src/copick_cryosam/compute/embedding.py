"""Embeddings of every run ahead of the picking: one tomogram after the other."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from copick_cryosam.compute.embeddings import TomogramEmbeddings
from copick_cryosam.compute.faults import detached, naming
from copick_cryosam.compute.outcomes import Listener, Outcome, Summary
from copick_cryosam.compute.seeds import agreed, inside
from copick_cryosam.config import AlignmentSettings, Settings
from copick_cryosam.errors import CryosamError, InputError
from copick_cryosam.io.features import KeptEmbeddings, check_encoder
from copick_cryosam.io.job import Job, PicksUri, TomogramUri
from copick_cryosam.io.project import Project, open_project
from copick_cryosam.types import Grid

if TYPE_CHECKING:
    from copick_cryosam.pipeline import CryoSAM

__all__ = ["EmbedJob", "PlannedEmbedding", "embed_job", "plan_embedding"]

logger = logging.getLogger(__name__)

_ANY_RADIUS = 1.0
"""Voxels; only seeds have a size."""


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """Which tomograms are embedded.

    Attributes
    ----------
    config : path of the copick configuration
    tomogram : the kind of tomogram
    seeds : picks from which the polarity is decided; None where the settings say it
    runs : None for all
    overwrite : replace what is stored, whatever it is
    """

    config: str
    tomogram: TomogramUri
    seeds: PicksUri | None = None
    runs: tuple[str, ...] | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannedEmbedding:
    """A run that would be embedded; `grid` is None where `error` says why it cannot be."""

    run: str
    stored: bool = False
    grid: Grid | None = None
    error: CryosamError | None = None


def plan_embedding(job: EmbedJob, settings: Settings) -> list[PlannedEmbedding]:
    """What `embed_job` would work on; only metadata are read, and nothing is written.

    Raises
    ------
    CryosamError
        The job as a whole is impossible.
    """
    project = _open_project(job, settings)
    planned = []
    for run in project.select_runs(job.runs):
        try:
            grid = project.tomogram(run, job.tomogram).grid
            there = not KeptEmbeddings(project, run, job.tomogram, settings.encoder.name).absent
            planned.append(PlannedEmbedding(run=run, stored=there, grid=grid))
        except CryosamError as error:
            planned.append(PlannedEmbedding(run=run, error=error))
    return planned


def embed_job(job: EmbedJob, settings: Settings, listener: Listener | None = None) -> Summary:
    """Encode every tomogram of the job whose embeddings are not stored yet, and keep them in the project.

    Stored embeddings that match are skipped; such that do not are replaced, features of the same name by other
    programs only when overwriting was asked for. A run that fails does not stop the others.

    Raises
    ------
    CryosamError
        The job as a whole is impossible; the seeds of no run could be used; or they contradict each other.
    """
    listener = listener or Listener()
    project = _open_project(job, settings)
    runs = project.select_runs(job.runs)
    from copick_cryosam.pipeline import CryoSAM

    # Nothing is segmented, and embeddings are kept as the encoder gives them.
    model = CryoSAM.from_settings(
        Settings(
            encoder=settings.encoder,
            alignment=AlignmentSettings(second_look=False),
            polarity=settings.polarity,
            device=settings.device,
            preset=settings.preset,
        )
    )
    polarity, failures = _polarity(job, settings, project, model, listener)
    listener.begun(len(runs))
    outcomes = []
    for run in runs:
        listener.run_started(run, "embed")
        began = time.perf_counter()
        try:
            with naming(run, settings):
                reused = _embed(job, project, run, model, polarity, listener)
            state, error = "skipped" if reused else "done", None
        except CryosamError as raised:
            logger.debug("run %s failed", run, exc_info=raised)
            state, error = "failed", detached(raised)
        seconds = time.perf_counter() - began
        outcome = Outcome(run=run, state=state, error=error, seconds=seconds)  # type: ignore[arg-type]
        listener.run_ended(outcome)
        outcomes.append(outcome)
    return Summary(outcomes=tuple(outcomes), overlay=project.overlay, polarity=polarity, seed_failures=failures)


def _open_project(job: EmbedJob, settings: Settings) -> Project:
    check_encoder(settings.encoder.name)
    if job.seeds is None and settings.polarity == "auto":
        raise InputError(
            "polarity: expected dark or light, or picks that show it, found neither",
            hint="Add --polarity dark (usual for particles in ice), or picks with -i object:user/session",
        )
    project = open_project(job.config)
    if job.seeds is not None:
        project.object(job.seeds.object_name)
    return project


def _polarity(
    job: EmbedJob, settings: Settings, project: Project, model: CryoSAM, listener: Listener
) -> tuple[str, dict[str, CryosamError]]:
    """How particles look, from the seeds of all runs, and which runs' seeds could not be used."""
    if job.seeds is None:
        return settings.polarity, {}
    radius = project.object(job.seeds.object_name).radius
    # Nothing is written there: picks of any user may show the polarity.
    output = f"{job.seeds.object_name}:cryosam/embeddings"
    seeds = project.seeds(
        Job.create(config=job.config, tomogram=str(job.tomogram), seeds=str(job.seeds), output=output)
    ).positive
    found: dict[str, str] = {}
    failures: dict[str, CryosamError] = {}
    for run, points in seeds.items():
        listener.run_started(run, "seeds")
        try:
            with naming(run, settings):
                volume = project.tomogram(run, job.tomogram)
                spacing = volume.grid.voxel_spacing
                voxels = inside(points, volume.grid, run, "seeds")
                found[run] = model.polarity(
                    volume.read(partial(listener.progress, "read")), voxels, radius / spacing, voxel_spacing=spacing
                )
        except CryosamError as error:
            failures[run] = detached(error)
    if not found:
        raise next(iter(failures.values()))
    return agreed(found), failures


def _embed(job: EmbedJob, project: Project, run: str, model: CryoSAM, polarity: str, listener: Listener) -> bool:
    """Whether the embeddings were there already."""
    volume = project.tomogram(run, job.tomogram)
    data = volume.read(partial(listener.progress, "read"))
    stored = TomogramEmbeddings(
        project,
        run,
        job.tomogram,
        data,
        volume.grid,
        model.encoder,
        model.device,
        reuse=not job.overwrite,
        keep=True,
        replace_foreign=job.overwrite,
        progress=listener.progress,
    )
    spacing = volume.grid.voxel_spacing
    model.open(
        data, None, _ANY_RADIUS, polarity=polarity, voxel_spacing=spacing, progress=listener.progress, stored=stored
    )
    return stored.reused
