"""Learn which peaks of the centre map are particles, and which two are parts of one, for `discover`.

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
from copick_cryosam.encoders import Encoder, load_encoder
from copick_cryosam.pair_evidence import neighbours, pair_evidence
from copick_cryosam.peak_evidence import peak_evidence
from copick_cryosam.peaks import embeddings, peaks_of
from copick_cryosam.pretraining.export import save_net, shipped
from copick_cryosam.pretraining.pool import Sample, finished, load_sample, sample_paths, save_whole
from copick_cryosam.pretraining.train_ranker import Training, fit
from copick_cryosam.ranker import PeakRankers, Ranker
from copick_cryosam.types import FloatArray, VoxelPoints

STEPS = 2000
WEIGHT_DECAY = 1.0
PAIRED = 0.25
"""Height from which on a peak's neighbours are learned from: lower ones hardly become picks."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lessons:
    """Rows of evidence of one sample.

    Attributes
    ----------
    evidence : of `peak_evidence` or `pair_evidence`, shape (N, F)
    truth : 1 for a particle, or for parts of one; 0 for anything else; shape (N,)
    lesson : where something is learned, shape (N,)
    """

    evidence: FloatArray
    truth: FloatArray
    lesson: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, name: str) -> Lessons:
        """Of the peaks or of the pairs, of what was collected."""
        with np.load(path) as file:
            return cls(**{each: file[f"{name}.{each}"] for each in ("evidence", "truth", "lesson")})


def collect(encoder: Encoder, sample: Sample) -> dict[str, NDArray[np.generic]]:
    """Evidence of the peaks and pairs of both tomograms of a sample, to be kept; see `Lessons.read`."""
    parts = [_tomogram(encoder, sample, t) for t in range(len(sample.volumes))]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _tomogram(encoder: Encoder, sample: Sample, which: int) -> dict[str, NDArray[np.generic]]:
    features, peaks = peaks_of(encoder.encode(sample.volumes[which]))
    points = features.grid.to_voxels(peaks.cells)
    truth, lesson = told(features.grid.clamp(points), sample, which)
    high = peaks[peaks.height >= PAIRED]
    places = features.grid.to_voxels(high.cells)
    pairs = neighbours(places, high.radius_vox)
    seen = embeddings(high.cells, high.radius_vox, features)
    owner = particles_at(features.grid.clamp(places), sample, which)[pairs]
    return {
        "peaks.evidence": peak_evidence(features, points, peaks.radius_vox, peaks.height),
        "peaks.truth": truth,
        "peaks.lesson": lesson,
        "pairs.evidence": pair_evidence(features, places, high.radius_vox, seen, pairs),
        "pairs.truth": ((owner[:, 0] == owner[:, 1]) & (owner[:, 0] >= 0)).astype(np.float64),
        # two that are nothing both are left to the other net
        "pairs.lesson": (owner >= 0).any(axis=1),
    }


def particles_at(points: VoxelPoints, sample: Sample, which: int) -> NDArray[np.int64]:
    """The particle that each point lies in, -1 where there is none, shape (N,)."""
    labels = sample.labels[which]
    at = np.clip(np.round(points.zyx).astype(int), 0, np.array(labels.shape) - 1)
    return np.asarray(labels[tuple(at.T)].astype(np.int64) - 1)


def told(points: VoxelPoints, sample: Sample, which: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Which points are particles, one to one within their radius, and which points can be told of."""
    centres, radii, labels = sample.centres[which], sample.radii[which], sample.labels[which]
    limits = np.array(labels.shape) - 1
    inside = np.flatnonzero(((centres >= 0) & (centres <= limits)).all(axis=1))
    rows, columns, distances = close_pairs(points.zyx, centres[inside], radii[inside])
    truth = np.zeros(len(points))
    truth[rows[assign(rows, columns, distances, len(points), len(inside))]] = 1
    particle = particles_at(points, sample, which)
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
        save_whole(found, target)
        print(f"{path.stem}  {len(found['peaks.truth'])} peaks, {len(found['pairs.truth'])} pairs", flush=True)


def _fit_all(arguments: argparse.Namespace) -> None:
    paths = [path for folder in arguments.out for path in finished(folder, "peaks")]
    if not paths:
        raise SystemExit(f"{', '.join(map(str, arguments.out))}: expected collected peaks, found none; collect first")
    how = Training(seed=arguments.seed, weight_decay=arguments.weight_decay, steps=arguments.steps)
    rankers = PeakRankers()
    for name, net in (("peaks", rankers.peaks), ("pairs", rankers.pairs)):
        _learn(net, [Lessons.read(path, name) for path in paths], how, name)
    target = arguments.weights or shipped("peaks")
    save_net(rankers, target)
    print(target)


def _learn(net: Ranker, lessons: Sequence[Lessons], how: Training, name: str) -> None:
    net.load_state_dict(fit([one.evidence for one in lessons], lessons, how).state_dict())
    rows = sum(int(one.lesson.sum()) for one in lessons)
    true = sum(int(one.truth[one.lesson].sum()) for one in lessons)
    print(f"{len(lessons)} samples, {rows} {name}, {true} true")


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
