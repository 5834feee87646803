"""The page on a discovery: tomograms are read again, one at a time."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from copick_cryosam.compute.discovering import Discovery
from copick_cryosam.errors import InputError
from copick_cryosam.io.discover_job import REST, DiscoverJob
from copick_cryosam.io.project import Project, open_project
from copick_cryosam.io.writing_sets import SetsWriter
from copick_cryosam.report.discovery_page import ClusterReport, DiscoveredRun, DiscoveryReport, write_discovery
from copick_cryosam.types import Volume

__all__ = ["write_discovery_report"]


def write_discovery_report(path: Path, job: DiscoverJob, found: Discovery, command: str) -> Path:
    """Write the page on the runs that were searched now.

    Raises
    ------
    InputError
        None was.
    OutputError
        The file cannot be written.
    """
    if not found.runs:
        raise InputError(
            f"report {path}: expected at least one run searched now, found none",
            hint="Search finished runs again with --overwrite",
        )
    project = open_project(job.config)
    record = SetsWriter(project, job).record(next(iter(found.runs))) or {}
    report = DiscoveryReport(
        title=f"Particles of every kind in {job.tomogram}",
        object_name=job.output.object_name,
        radius=found.radius,
        polarity=str(found.summary.polarity),
        runs=[
            DiscoveredRun(
                run_name=project.title(run),
                volume=partial(_volume, project, job, run),
                grid=one.grid,
                points=one.found.points,
                probability=one.found.probability,
                radius_vox=one.found.radius_vox,
                diameter_vox=one.found.diameter_vox,
                labels=one.labels,
            )
            for run, one in found.runs.items()
        ],
        clusters=[
            ClusterReport(
                name=name,
                label=0 if name == REST else int(name),
                uri=str(job.set_of(name)),
                command=None if name == REST else _next(job, name),
            )
            for name in found.clusters
        ],
        command=command,
        versions={**record.get("versions", {}), **found.models},
        warnings=[
            f"Run {one.run} failed and is not shown: {one.error}"
            for one in found.summary.outcomes
            if one.error is not None
        ],
    )
    return write_discovery(report, path)


def _next(job: DiscoverJob, cluster: str) -> str:
    """The command that takes the cluster for seeds; the output has a session of its own for each cluster."""
    seeds = job.set_of(cluster)
    words = ["copick", "inference", "cryosam", "-c", job.config, "-t", str(job.tomogram), "-i", str(seeds)]
    return shlex.join([*words, "-o", f"{seeds.object_name}:{seeds.user_id}/like-{seeds.session_id}"])


def _volume(project: Project, job: DiscoverJob, run: str) -> Volume:
    return project.tomogram(run, job.tomogram).read()
