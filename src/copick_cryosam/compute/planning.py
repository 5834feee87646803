"""What a job would do, how long it may take and how much memory it needs. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from copick_cryosam.compute.request import asked_for, is_stale
from copick_cryosam.config import Settings
from copick_cryosam.errors import CryosamError
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import open_project
from copick_cryosam.io.writing import OutputState, Writer
from copick_cryosam.types import Grid

__all__ = ["Plan", "PlannedRun", "plan"]

_PROCESS_BYTES = 0.4e9
"""Python, torch and the weights."""
_BYTES_PER_VOXEL = 40
"""The tomogram twice, features, similarity and labels."""
_TILE_BYTES_PER_VOXEL = 80
"""Activations of the encoder, for the voxels of a tile."""
_ENCODE_SECONDS = {"embednet": 1.2e-6, "fake": 0.5e-6}
"""One CPU core, per voxel."""
_DECODE_SECONDS = {"promptnet": 6e-3, "fake": 0.2e-3}
"""One CPU core, per plane prompt."""
_READ_SECONDS = 0.1e-6
_DECODES_PER_RADIUS = 9
"""Plane prompts of one proposal, per voxel of the object's radius: six walks of 1.5 radii."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedRun:
    """One run that would be searched or skipped.

    Attributes
    ----------
    state : absent, interrupted, finished or stale (finished, with other settings or seeds)
    pending : whether it would be searched
    grid : of its tomogram; None where `error` says why it cannot be opened
    memory : bytes, roughly
    seconds : on one CPU core, roughly and at most; a GPU takes a small part of it
    """

    run: str
    state: str
    pending: bool
    grid: Grid | None = None
    error: CryosamError | None = None
    memory: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What a job would do.

    Attributes
    ----------
    runs : in the order asked for
    seeds : number of seeds by run
    device : where the models would run
    models : signatures of encoder and segmenter
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
    def memory(self) -> float:
        """Bytes that the largest run needs, roughly; one tomogram is worked on at a time."""
        return max((one.memory for one in self.pending), default=0.0)

    @property
    def seconds(self) -> float:
        """All runs together; see `PlannedRun.seconds`."""
        return sum(one.seconds for one in self.pending)


def plan(job: Job, settings: Settings) -> Plan:
    """What `run_job` would do: the same checks, but for whether the overlay can be written.

    Metadata of the tomograms are read, and the models are loaded to see that they are there.

    Raises
    ------
    CryosamError
        The job as a whole is impossible.
    """
    from copick_cryosam.pipeline import CryoSAM

    project = open_project(job.config)
    runs = project.select_runs(job.runs)
    radius = project.object(job.seeds.object_name).radius
    for name in (job.output.object_name, job.output_segmentation.name if job.output_segmentation else None):
        if name is not None:
            project.object(name)
    seeds = project.seeds(job)
    writer, asked = Writer(project, job), asked_for(settings, seeds)
    model = CryoSAM.from_settings(settings)
    planned = []
    for run in runs:
        state = writer.state(run, {})
        pending = job.overwrite or not state.done
        if state.done:
            state = OutputState.STALE if is_stale(writer.record(run), job, asked) else OutputState.FINISHED
        try:
            grid = project.tomogram(run, job.tomogram).grid
        except CryosamError as error:
            planned.append(PlannedRun(run=run, state=state.value, pending=pending, error=error))
            continue
        memory, seconds = _estimate(grid, radius / grid.voxel_spacing, settings)
        planned.append(
            PlannedRun(run=run, state=state.value, pending=pending, grid=grid, memory=memory, seconds=seconds)
        )
    return Plan(
        runs=tuple(planned),
        seeds={run: len(points) for run, points in seeds.positive.items()},
        device=str(model.device),
        models={"encoder": model.encoder.signature, "segmenter": model.segmenter.signature},
    )


def _estimate(grid: Grid, radius_vox: float, settings: Settings) -> tuple[float, float]:
    """Bytes and seconds for one tomogram."""
    z, y, x = grid.shape_zyx
    voxels = z * y * x
    tile = min(voxels, (settings.encoder.tile + 64) ** 3)
    memory = _PROCESS_BYTES + _BYTES_PER_VOXEL * voxels + _TILE_BYTES_PER_VOXEL * tile
    # Particles lie a diameter apart; there are hardly more of them than cubes of that edge.
    proposals = min(settings.matching.max_proposals, max(1.0, voxels / (2 * max(radius_vox, 1.0)) ** 3))
    decodes = proposals * _DECODES_PER_RADIUS * max(radius_vox, 1.0)
    encode = _ENCODE_SECONDS.get(settings.encoder.name, max(_ENCODE_SECONDS.values())) + _READ_SECONDS
    decode = _DECODE_SECONDS.get(settings.segmenter.name, max(_DECODE_SECONDS.values()))
    return memory, voxels * encode + decodes * decode
