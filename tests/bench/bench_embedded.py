"""Time and memory of the embedded models on one tomogram: encode, match, look again, segment.

    python tests/bench/bench_embedded.py [--shape 184 630 630] [--proposals 200] [--threads 2] [--precision fp32]

The tomogram is a simulated block, repeated until it has the shape. Exactly as many proposals as asked for
are segmented. Memory is the process' resident set, sampled while a stage runs.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from copick_cryosam.config import MatchingSettings, Precision
from copick_cryosam.matching import propose
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.simulate import Scene, centres_inside, simulate
from copick_cryosam.pretraining.validate import embedded
from copick_cryosam.segmenters.cross_plane import segment
from copick_cryosam.types import VoxelPoints

BLOCK = (64, 210, 210)
RADIUS = 9.0
GOAL_SECONDS, GOAL_BYTES = 120.0, 4e9
EVERY = 0.02
"""Seconds between two looks at the resident set."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage took: seconds, the resident set before it and at its peak, in bytes."""

    name: str
    seconds: float
    before: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All stages, and what they worked on."""

    stages: list[Stage]
    voxels: int
    proposals: int
    masks: int
    decodes: int

    @property
    def seconds(self) -> float:
        # looking matches, too, and candidates compete alone or together with others
        return sum(stage.seconds for stage in self.stages if stage.name not in ("match", "alone"))

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)


def resident() -> int:
    """Bytes of this process in memory now; where the system does not tell, the most there have been."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def stage(name: str, stages: list[Stage]) -> Iterator[None]:
    """Time what runs inside and watch its memory from a thread."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
        stages.append(Stage(name=name, seconds=seconds, before=before, peak=max(peak, resident())))


def tomogram(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A tomogram of `shape` and one particle's centre in it, both cut out of repetitions of one simulated block."""
    rng = np.random.default_rng(seed)
    kinds = [random_shape(rng, family="assembly", radius=RADIUS), random_shape(rng, family="globule", radius=7.0)]
    scene = Scene(shape_zyx=BLOCK, counts=(40, 60), membranes=1, beads=1, gap=1)
    block, specimen = simulate(scene, kinds, Imaging(snr=0.1), rng)
    centres = centres_inside(specimen, 0)
    room = (centres > RADIUS).all(axis=1) & (centres < np.minimum(BLOCK, shape) - RADIUS).all(axis=1)
    repeats = [math.ceil(n / m) for n, m in zip(shape, BLOCK, strict=True)]
    z, y, x = shape
    return np.tile(block, repeats)[:z, :y, :x].copy(), centres[room][0]


def run(shape: tuple[int, int, int], wanted: int, precision: Precision = "auto") -> Bench:
    """Encode, match and segment one tomogram of `shape` with the embedded models on the CPU."""
    volume, seed = tomogram(shape)
    model = CryoSAM.from_settings(embedded(precision))
    seeds = VoxelPoints(seed)
    stages: list[Stage] = []
    with stage("encode", stages):
        opened = model.open(volume, None, RADIUS, polarity="light")
    with stage("seed", stages):
        seeded = model.seed(opened, seeds, RADIUS)
    query = model.query([seeded])
    with stage("match", stages):
        proposals = propose(opened.features, query, RADIUS, model.settings.matching)
    with stage("look", stages):  # matches once more
        shortlist = model.shortlist(opened, query, [seeded], RADIUS)
    with stage("alone", stages):
        model.rank(shortlist, RADIUS)
    with stage("together", stages):  # as beside two other tomograms
        ranked = model.rank(shortlist, RADIUS, company=[shortlist, shortlist])
    with stage("refine", stages):
        model.finer(ranked, wanted, RADIUS)
    if len(proposals) < wanted:  # a small tomogram: let proposals lie closer to each other
        closer = MatchingSettings(nms_radius=0.2, smoothing=0.1)
        proposals = propose(opened.features, query, RADIUS, closer)
    if len(proposals) < wanted:
        raise SystemExit(f"expected {wanted} proposals, found {len(proposals)}: give a larger --shape")
    with stage("segment", stages):
        masks = segment(
            torch.from_numpy(opened.volume),
            proposals[:wanted].points,
            RADIUS,
            model.segmenter,
            model.settings.segmenter,
        )
    return Bench(
        stages=stages,
        voxels=math.prod(shape),
        proposals=wanted,
        masks=sum(bool(mask.mask.size) for mask in masks),
        decodes=sum(mask.decodes for mask in masks),
    )


def processor() -> str:
    """The CPU's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(bench: Bench, shape: tuple[int, int, int]) -> None:
    """Print the table, the hardware and how it stands to the goal."""
    print(f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"tomogram {' x '.join(map(str, shape))}, radius {RADIUS:g} voxels, {bench.proposals} proposals")
    print(f"{'stage':<9}{'seconds':>9}{'peak GB':>9}{'grown GB':>10}  rate")
    for one in bench.stages:
        rate = f"{bench.voxels / one.seconds / 1e6:.2f} M voxels/s" if one.name in ("encode", "match") else ""
        if one.name == "segment":
            rate = f"{bench.decodes / one.seconds:.0f} plane decodes/s ({bench.decodes}), {bench.masks} masks"
        grown = (one.peak - one.before) / 1e9
        print(f"{one.name:<9}{one.seconds:>9.1f}{one.peak / 1e9:>9.2f}{grown:>10.2f}  {rate}")
    met = bench.seconds < GOAL_SECONDS and bench.peak < GOAL_BYTES
    print(f"{'all':<9}{bench.seconds:>9.1f}{bench.peak / 1e9:>9.2f}")
    print(f"goal: {GOAL_SECONDS:.0f} s and {GOAL_BYTES / 1e9:.0f} GB on two cores: {'met' if met else 'missed'}")


@pytest.mark.bench
def test_one_tomogram_within_the_goal() -> None:
    """A usual tomogram, 184 x 630 x 630, on two threads."""
    torch.set_num_threads(2)
    bench = run((184, 630, 630), 200)
    show(bench, (184, 630, 630))
    assert bench.seconds < GOAL_SECONDS
    assert bench.peak < GOAL_BYTES


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(184, 630, 630), metavar=("Z", "Y", "X"))
    parser.add_argument("--proposals", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both nets and of the search for poses"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    z, y, x = arguments.shape
    show(run((z, y, x), arguments.proposals, arguments.precision), (z, y, x))


if __name__ == "__main__":
    main()
