"""Learn which peaks of the centre map are particles, for `discover`, on simulated pairs of tomograms.

    python -m copick_cryosam.pretraining.train_peaks collect --pool FOLDER --out FOLDER
    python -m copick_cryosam.pretraining.train_peaks fit --out FOLDER [FOLDER ...]

The pool must hold samples that EmbedNet was not trained on, and few particles beside clutter: in crowded tomograms
hardly a peak is wrong. `collect` goes on where it stopped; `fit` writes the package's weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam.assignment import assign, close_pairs
from copick_cryosam.config import preset
from copick_cryosam.discovery import peaks_of
from copick_cryosam.encoders import Encoder, load_encoder
from copick_cryosam.peak_evidence import peak_evidence
from copick_cryosam.pretraining.export import save_net, shipped
from copick_cryosam.pretraining.pool import Sample, finished, load_sample, sample_paths, save_whole
from copick_cryosam.pretraining.train_ranker import Training, fit
from copick_cryosam.ranker import PeakRanker
from copick_cryosam.types import FloatArray, VoxelPoints

STEPS = 2000
WEIGHT_DECAY = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class PeakLesson:
    """Peaks of one sample's tomograms.

    Attributes
    ----------
    evidence : of `peak_evidence`, shape (N, F)
    truth : 1 for a particle, 0 for anything else, shape (N,)
    lesson : where something is learned: not on particles whose centre lies outside, shape (N,)
    """

    evidence: FloatArray
    truth: FloatArray
    lesson: NDArray[np.bool_]


def collect(encoder: Encoder, sample: Sample) -> PeakLesson:
    """The peaks of both tomograms of a sample."""
    parts = [_tomogram(encoder, sample, t) for t in range(len(sample.volumes))]
    return PeakLesson(
        evidence=np.concatenate([one.evidence for one in parts]),
        truth=np.concatenate([one.truth for one in parts]),
        lesson=np.concatenate([one.lesson for one in parts]),
    )


def _tomogram(encoder: Encoder, sample: Sample, which: int) -> PeakLesson:
    features, peaks = peaks_of(encoder.encode(sample.volumes[which]))
    points = features.grid.to_voxels(peaks.cells)
    truth, lesson = told(features.grid.clamp(points), sample, which)
    evidence = peak_evidence(features, points, peaks.radius_vox, peaks.height)
    return PeakLesson(evidence=evidence, truth=truth, lesson=lesson)


def told(points: VoxelPoints, sample: Sample, which: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Which points are particles, one to one within their radius, and which points can be told of."""
    centres, radii, labels = sample.centres[which], sample.radii[which], sample.labels[which]
    limits = np.array(labels.shape) - 1
    inside = np.flatnonzero(((centres >= 0) & (centres <= limits)).all(axis=1))
    rows, columns, distances = close_pairs(points.zyx, centres[inside], radii[inside])
    truth = np.zeros(len(points))
    truth[rows[assign(rows, columns, distances, len(points), len(inside))]] = 1
    at = np.clip(np.round(points.zyx).astype(int), 0, limits)
    particle = labels[tuple(at.T)].astype(np.int64) - 1
    cut = (particle >= 0) & ~np.isin(particle, inside)
    return truth, (truth == 1) | ~cut


def _collect_all(arguments: argparse.Namespace) -> None:
    (folder,) = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(preset("embedded").encoder, torch.device("cpu"))
    for path in sample_paths(arguments.pool):
        # samples of several pools may bear the same number
        target = folder / f"peaks-{arguments.pool.name}-{path.stem}.npz"
        if target.exists():
            continue
        found = collect(encoder, load_sample(path))
        save_whole({"evidence": found.evidence, "truth": found.truth, "lesson": found.lesson}, target)
        print(f"{path.stem}  {len(found.truth)} peaks, {int(found.truth.sum())} true", flush=True)


def _fit_all(arguments: argparse.Namespace) -> None:
    paths = [path for folder in arguments.out for path in finished(folder, "peaks")]
    if not paths:
        raise SystemExit(f"{', '.join(map(str, arguments.out))}: expected collected peaks, found none; collect first")
    lessons = []
    for path in paths:
        with np.load(path) as file:
            lessons.append(PeakLesson(evidence=file["evidence"], truth=file["truth"], lesson=file["lesson"]))
    how = Training(seed=arguments.seed, weight_decay=arguments.weight_decay, steps=arguments.steps)
    ranker = PeakRanker()
    ranker.load_state_dict(fit([one.evidence for one in lessons], lessons, how).state_dict())
    target = arguments.weights or shipped("peaks")
    save_net(ranker, target)
    peaks = sum(int(one.lesson.sum()) for one in lessons)
    true = sum(int(one.truth[one.lesson].sum()) for one in lessons)
    print(f"{target}  {len(lessons)} samples, {peaks} peaks, {true} true")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and collect or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "fit"))
    parser.add_argument("--pool", type=Path, default=None)
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="of peaks; fit learns from several")
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=None, help="default: the package's own")
    arguments = parser.parse_args(argv)
    if arguments.what == "collect" and (arguments.pool is None or len(arguments.out) > 1):
        parser.error("collect: expected --pool and one folder of --out")
    torch.set_num_threads(arguments.threads)
    (_collect_all if arguments.what == "collect" else _fit_all)(arguments)


if __name__ == "__main__":
    main()
