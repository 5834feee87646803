"""What is asked of every run of a job, as its completion record keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from copick_cryosam.config import Settings
from copick_cryosam.io.discover_job import DiscoverJob
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import Seeds
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.sasi_job import DetectionJob
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import AngstromPoints

__all__ = ["asked_for", "is_stale", "state_of"]


def asked_for(settings: Settings, seeds: Seeds) -> dict[str, Any]:
    """Settings and seeds as JSON types, without the device: it does not decide what is found."""
    return {
        "settings": settings.model_dump(mode="json", exclude={"device"}),
        "seeds": _digests(seeds.positive),
        "negatives": _digests(seeds.negative),
    }


def state_of(writer: Writer, run: str, asked: Mapping[str, Any]) -> OutputState:
    """What is there of a run's results, compared by what was asked: models and results are not known before the work.

    Raises
    ------
    OutputError
        See `Writer.state`.
    """
    state = writer.state(run, {})
    if not state.done:
        return state
    return OutputState.STALE if is_stale(writer.record(run), writer.job, asked) else OutputState.FINISHED


def is_stale(record: Mapping[str, Any] | None, job: Job | DiscoverJob | DetectionJob, asked: Mapping[str, Any]) -> bool:
    """Whether a finished run was made for another job, or with other settings or seeds than those asked for."""
    parameters = {} if record is None else record.get("parameters", {})
    return parameters.get("job") != job.identity() or any(parameters.get(key) != asked[key] for key in asked)


def _digests(points: Mapping[str, AngstromPoints]) -> dict[str, Any]:
    """How many points each run has, and a hash of their positions to a thousandth of an Å."""
    return {
        run: {"count": len(some), "sha256": hashlib.sha256((some.xyz.round(3) + 0.0).tobytes()).hexdigest()}
        for run, some in sorted(points.items())
    }
