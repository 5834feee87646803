"""What a job would do, how long it may take and how much memory it needs. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from copick_cryosam.compute.averages import Averages
from copick_cryosam.compute.estimating import estimate
from copick_cryosam.compute.models import named_models
from copick_cryosam.compute.request import asked_for, state_of
from copick_cryosam.config import Settings
from copick_cryosam.errors import CryosamError
from copick_cryosam.io.features import check_encoder
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import open_project
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import Grid

__all__ = ["Plan", "PlannedRun", "plan"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedRun:
    """One run that would be searched or skipped.

    Attributes
    ----------
    state : absent, interrupted, finished or stale (finished, with other settings or seeds)
    pending : whether it would be searched
    grid : of its tomogram; None where `error` says why it cannot be opened
    memory : bytes, roughly; None: not known, as for a model that is not in the catalogue
    seconds : on one CPU core, roughly and at most; a GPU takes a small part of it; None: not known
    """

    run: str
    state: str
    pending: bool
    grid: Grid | None = None
    error: CryosamError | None = None
    memory: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What a job would do.

    Attributes
    ----------
    runs : in the order asked for
    seeds : number of seeds by run
    device : where the models would run
    models : signatures of encoder and segmenter; for foundation models, name and where they would be loaded from
    """

    runs: tuple[PlannedRun, ...]
    seeds: dict[str, int]
    device: str
    models: dict[str, str]

    @property
    def pending(self) -> tuple[PlannedRun, ...]:
        """The runs that would be searched and can be."""
        return tuple(one for one in self.runs if one.pending and one.error is None)

    @property
    def memory(self) -> float | None:
        """Bytes that the largest run needs, roughly; one tomogram is worked on at a time."""
        needs = [one.memory for one in self.pending if one.memory is not None]
        return max(needs, default=0.0) if len(needs) == len(self.pending) else None

    @property
    def seconds(self) -> float | None:
        """All runs together; see `PlannedRun.seconds`."""
        times = [one.seconds for one in self.pending if one.seconds is not None]
        return sum(times) if len(times) == len(self.pending) else None


def plan(job: Job, settings: Settings) -> Plan:
    """What `run_job` would do: the same checks, but for whether the overlay can be written.

    Metadata of the tomograms are read. The embedded models are loaded; checkpoints of SAM are recognised, and of
    transformers it is only said where they would come from.

    Raises
    ------
    CryosamError
        The job as a whole is impossible.
    """
    from copick_cryosam.devices import resolve_device
    from copick_cryosam.encoders import load_encoder
    from copick_cryosam.segmenters import load_segmenter

    if job.keep_embeddings:
        check_encoder(settings.encoder.name)
    Averages(job, settings)
    project = open_project(job.config)
    runs = project.select_runs(job.runs)
    radius = project.object(job.seeds.object_name).radius
    for name in (job.output.object_name, job.output_segmentation.name if job.output_segmentation else None):
        if name is not None:
            project.object(name)
    seeds = project.seeds(job)
    writer, asked = Writer(project, job), asked_for(settings, seeds)
    device = resolve_device(settings.device)
    models = named_models(settings)
    shown = {role: f"{model.name} from {model.place}" for role, model in models.items() if model.place is not None}
    if "encoder" not in shown:
        shown["encoder"] = load_encoder(settings.encoder, device).signature
    if "segmenter" not in shown:
        shown["segmenter"] = load_segmenter(settings.segmenter, device).signature
    planned = []
    for run in runs:
        state = state_of(writer, run, asked)
        pending = job.overwrite or not state.done
        try:
            grid = project.tomogram(run, job.tomogram).grid
        except CryosamError as error:
            planned.append(PlannedRun(run=run, state=state.value, pending=pending, error=error))
            continue
        needed = estimate(grid, radius / grid.voxel_spacing, settings, models, others=len(runs) - 1)
        memory, seconds = needed or (None, None)
        planned.append(
            PlannedRun(run=run, state=state.value, pending=pending, grid=grid, memory=memory, seconds=seconds)
        )
    return Plan(
        runs=tuple(planned),
        seeds={run: len(points) for run, points in seeds.positive.items()},
        device=str(device),
        models={role: shown[role] for role in models},
    )
