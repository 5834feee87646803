"""Time of the first object of a tomogram, whose embeddings are kept, and of a second one, which reuses them.

    python tests/bench/bench_second_object.py [--shape 184 630 630] [--proposals 200] [--threads 2] [--cpu]

Both are whole jobs on a copick project on disk, stage by stage, writing included. The tomogram is a simulated block,
repeated until it has the shape. The third job is the second object again, without reuse. With --cpu it is the
processor time of all threads, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_embedded import RADIUS, processor, tomogram

from copick_cryosam import matching
from copick_cryosam.compute import run_job
from copick_cryosam.compute.embeddings import TomogramEmbeddings
from copick_cryosam.config import override, preset
from copick_cryosam.encoders.embednet import EmbedNetEncoder
from copick_cryosam.io.creating import NewObject, add_picks, add_tomogram, create_project
from copick_cryosam.io.job import Job, PicksUri
from copick_cryosam.io.volume import TomogramVolume
from copick_cryosam.io.writing import Writer
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.types import Grid, VoxelPoints

SPACING = 10.0
STAGES = (
    ("read", TomogramVolume, "read"),
    ("load", TomogramEmbeddings, "load"),
    ("encode", EmbedNetEncoder, "encode"),
    ("keep", TomogramEmbeddings, "keep"),
    ("seed", CryoSAM, "seed"),
    ("shortlist", CryoSAM, "shortlist"),
    ("finish", CryoSAM, "finish"),
    ("match", matching, "propose"),
    ("write", Writer, "write"),
)


@contextmanager
def timed(calls: dict[str, list[float]], clock: Callable[[], float]) -> Iterator[None]:
    """Time of every call of the stages, in order."""

    def watched(name: str, original: Any) -> Any:
        def call(*args: Any, **given: Any) -> Any:
            began = clock()
            try:
                return original(*args, **given)
            finally:
                calls.setdefault(name, []).append(clock() - began)

        return call

    with ExitStack() as stack:
        for name, kind, method in STAGES:
            stack.enter_context(patch.object(kind, method, watched(name, getattr(kind, method))))
        yield


def pick(config: Path, name: str, proposals: int, clock: Callable[[], float], **given: Any) -> dict[str, float]:
    """Seconds of one job by stage, and of all of it."""
    settings = override(
        preset("embedded"),
        {"matching": {"max_proposals": proposals}, "instances": {"min_precision": 0.0}, "device": "cpu"},
    )
    job = Job.create(config=str(config), tomogram="wbp", seeds=f"{name}:curator/1", overwrite=True, **given)
    calls: dict[str, list[float]] = {}
    began = clock()
    with timed(calls, clock):
        summary = run_job(job, settings)
    everything = clock() - began
    assert summary.succeeded
    # The seed is matched, too, which is a part of its own stage: the last match is the search's.
    match = calls.pop("match")[-1]
    seconds = {name: sum(each) for name, each in calls.items()}
    segment = seconds.pop("shortlist") + seconds.pop("finish") - match
    seconds |= {"match": match, "segment": segment}
    other = everything - sum(seconds.values())
    return {**seconds, "other": other, "all": everything, "unsegmented": everything - segment}


def run(
    folder: Path, shape: tuple[int, int, int], proposals: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """The three jobs."""
    volume, seed = tomogram(shape)
    radius = RADIUS * SPACING
    names = ("first", "second")
    objects = [NewObject(name=name, radius=radius, color=(0, 158, 115, 255)) for name in names]
    config = create_project(folder, "bench", objects)
    add_tomogram(config, "TS", "wbp", volume, SPACING)
    for name in names:
        add_picks(config, "TS", PicksUri(name, "curator", "1"), VoxelPoints(seed[None]), Grid(shape, SPACING))
    return {
        "first, kept": pick(config, "first", proposals, clock, keep_embeddings=True),
        "second, reused": pick(config, "second", proposals, clock),
        "second, anew": pick(config, "second", proposals, clock, reuse_embeddings=False),
    }


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(184, 630, 630), metavar=("Z", "Y", "X"))
    parser.add_argument("--proposals", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    z, y, x = arguments.shape
    with tempfile.TemporaryDirectory() as folder:
        jobs = run(
            Path(folder), (z, y, x), arguments.proposals, time.process_time if arguments.cpu else time.perf_counter
        )
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load {load:.1f}, {torch.get_num_threads()} threads")
    print(f"tomogram {z} x {y} x {x}, {arguments.proposals} proposals, {'CPU ' if arguments.cpu else ''}seconds")
    print(f"{'stage':<13}" + "".join(f"{name:>16}" for name in jobs))
    rows = ("read", "load", "encode", "keep", "seed", "match", "segment", "write", "other", "all", "unsegmented")
    for row in rows:
        print(f"{row:<13}" + "".join(f"{one.get(row, 0.0):>16.2f}" for one in jobs.values()))


if __name__ == "__main__":
    main()
