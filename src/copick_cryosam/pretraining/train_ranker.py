"""Learn how the evidence of a candidate is weighed, on simulated pairs of tomograms.

    python -m copick_cryosam.pretraining.train_ranker collect --pool FOLDER --out FOLDER [--first]
    python -m copick_cryosam.pretraining.train_ranker fit --out FOLDER

The pool must hold samples that EmbedNet was not trained on: on kinds that it knows, similarity says more than it
does on others. `collect` searches every sample for each of its kinds, from one to five seeds in the first tomogram,
through the stages that users run, and keeps the evidence of all candidates with the truth. It goes on where it
stopped. `fit` trains both nets and writes the package's weights. Who is averaged depends on the first net, so the
procedure is: collect --first, fit, collect, fit.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file

import copick_cryosam.weights
from copick_cryosam.alignment import Aligner
from copick_cryosam.config import override, preset
from copick_cryosam.errors import SeedError
from copick_cryosam.features import DenseFeatures
from copick_cryosam.findings import Tomogram
from copick_cryosam.matching import propose
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.pool import Sample, load_sample, sample_paths
from copick_cryosam.ranker import MEMBERS, Ranker, Rankers, load_rankers
from copick_cryosam.second_look import Rank, choose, look_again, look_at_seeds, reference_of
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints, centroids
from copick_cryosam.wedge import estimate_wedge

SEEDS = (1, 1, 1, 2, 3, 5)
"""How many seeds a search starts from, drawn with equal chances."""

FEWEST = 0.05
"""Least share of the particles that is left where some are taken out."""


def collect(
    model: CryoSAM, sample: Sample, rng: np.random.Generator, rank: Rank, candidates: int, thin: float
) -> dict[str, FloatArray]:
    """Evidence of all candidates of one sample: first, second, truth, and the group (kind and tomogram) of each row."""
    volumes = [np.asarray(volume, dtype=np.float32) for volume in sample.volumes]
    opened = [model.open(volume, None, 8.0, polarity="light") for volume in volumes]
    features = [_dense(one) for one in opened]
    wedges = [estimate_wedge(volume) for volume in volumes]
    rows: dict[str, list[FloatArray]] = {"first": [], "second": [], "truth": [], "group": [], "seeds": []}
    group = 0
    for kind in np.unique(sample.kinds[0]):
        truths = [centres[kinds == kind] for centres, kinds in zip(sample.centres, sample.kinds, strict=True)]
        radius = float(sample.radii[0][sample.kinds[0] == kind][0])
        clicks = _clicks(truths[0], radius, opened[0].volume.shape, rng)
        if clicks is None:
            continue
        try:
            seeded = model.seed(opened[0], clicks, radius)
        except SeedError:
            continue
        query = model.query([seeded])
        aligner = Aligner(radius, model.settings.alignment, model.device)
        solid = [one for one in seeded.instances if one.size]
        seeds = look_at_seeds(
            aligner,
            opened[0].volume,
            features[0],
            centroids(solid),
            seeded.scores,
            wedges[0],
            radius,
        )
        reference = reference_of(aligner, [seeds])
        for t, tomogram in enumerate(opened):
            proposals = propose(tomogram.features, query, radius, model.settings.matching)
            if rng.random() < thin:
                proposals = thinned(proposals, truths[t], radius, rng, kept=clicks if t == 0 else None)
            if len(proposals) < 3:
                continue
            chosen, context = choose(len(proposals), tomogram.volume.size, radius, candidates)
            proposals = proposals[chosen]
            look = look_again(
                aligner,
                tomogram.volume,
                features[t],
                wedges[t],
                proposals,
                reference,
                radius,
                rank,
                context,
            )
            true = _is_true(proposals.points, truths[t], radius)
            # the seeds themselves are no lesson
            reach = radius if t == 0 else -1.0
            counted = np.linalg.norm(proposals.points.zyx[:, None] - clicks.zyx[None], axis=2).min(axis=1) > reach
            rows["first"].append(look.first[counted])
            rows["second"].append(look.second[counted])
            rows["truth"].append(true[counted])
            rows["group"].append(np.full(counted.sum(), float(group)))
            rows["seeds"].append(np.full(counted.sum(), float(len(clicks))))
            group += 1
    return {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in rows.items()}


def _dense(tomogram: Tomogram) -> DenseFeatures:
    assert isinstance(tomogram.features, DenseFeatures)
    return tomogram.features


def _clicks(
    centres: NDArray[np.float64], radius: float, shape: tuple[int, ...], rng: np.random.Generator
) -> VoxelPoints | None:
    """Seeds about a quarter of the radius off their particles, at least one more particle than seeds."""
    margin = np.array([0.5, 1, 1]) * radius
    inner = np.flatnonzero(((centres > margin) & (centres < np.array(shape) - margin)).all(axis=1))
    count = min(int(rng.choice(SEEDS)), len(inner), len(centres) - 1)
    if count < 1:
        return None
    chosen = centres[rng.choice(inner, size=count, replace=False)]
    clicks = chosen + rng.normal(size=chosen.shape) * 0.15 * radius
    return VoxelPoints(np.clip(clicks, 0, np.array(shape) - 1))


def thinned(
    proposals: Proposals,
    truth: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
    kept: VoxelPoints | None = None,
) -> Proposals:
    """Take particles of the kind out, as if the tomogram held fewer or none of them.

    A pool's samples are crowded; how many particles a user's tomogram holds, nobody knows, and where to stop depends
    on it. Candidates within a radius of a particle that is taken out go with it.

    Parameters
    ----------
    kept : points whose particles stay: the seeds
    """
    if len(truth) == 0:
        return proposals
    share = np.exp(rng.uniform(np.log(FEWEST), 0.0))
    out = rng.random(len(truth)) >= share
    if kept is not None:
        out &= np.linalg.norm(truth[:, None] - kept.zyx[None], axis=2).min(axis=1) > radius
    distance = np.linalg.norm(proposals.points.zyx[:, None] - truth[None], axis=2)
    return proposals[~(out[distance.argmin(axis=1)] & (distance.min(axis=1) <= radius))]


def _is_true(points: VoxelPoints, truth: NDArray[np.float64], radius: float) -> FloatArray:
    """1 for the best candidate within a radius of each particle, 0 for the others; points are best first."""
    if len(truth) == 0:
        return np.zeros(len(points))
    distance = np.linalg.norm(points.zyx[:, None] - truth[None], axis=2)
    nearest = distance.argmin(axis=1)
    near = np.flatnonzero(distance.min(axis=1) <= radius)
    _, first = np.unique(nearest[near], return_index=True)
    true = np.zeros(len(points))
    true[near[first]] = 1
    return true


def fit(
    evidence: FloatArray, truth: FloatArray, group: FloatArray, seed: int, weight_decay: float, steps: int = 3000
) -> Ranker:
    """Train an ensemble: each member on a bootstrap of the groups, cross-entropy, so that it is calibrated."""
    torch.manual_seed(seed)
    net = Ranker(evidence.shape[1])
    net.centre.copy_(torch.from_numpy(evidence.mean(axis=0)))
    net.scale.copy_(torch.from_numpy(evidence.std(axis=0) + 1e-3))
    rng = np.random.default_rng(seed)
    inputs, wanted = torch.from_numpy(evidence).float(), torch.from_numpy(truth).float()
    _, index = np.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
    bags = [np.bincount(rng.integers(groups, size=groups), minlength=groups)[index] for _ in range(MEMBERS)]
    draws = [np.repeat(np.arange(len(bag)), bag) for bag in bags]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = torch.zeros(())
        for member, draw in zip(net.members, draws, strict=True):
            some = torch.from_numpy(draw[rng.integers(len(draw), size=1024)])
            x = ((inputs[some] - net.centre) / net.scale).clamp(-4, 4)
            loss = loss + F.binary_cross_entropy_with_logits(member(x)[:, 0], wanted[some])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return net.eval()


def _heuristic(evidence: FloatArray) -> FloatArray:
    """Before there is a net: similarity and correlation, in units of their spread."""
    return np.asarray(1 / (1 + np.exp(-(evidence[:, 2] + 0.5 * evidence[:, 31] - 3.5))))


def read(folder: Path) -> dict[str, FloatArray]:
    """Everything collected; groups are numbered anew over all samples, and `sample` says where rows come from."""
    parts: dict[str, list[FloatArray]] = {}
    offset = 0.0
    for number, path in enumerate(sorted(folder.glob("evidence-*.npz"))):
        with np.load(path) as data:
            if len(data["truth"]) == 0:
                continue
            for name in data.files:
                parts.setdefault(name, []).append(data[name] + (offset if name == "group" else 0))
            parts.setdefault("sample", []).append(np.full(len(data["truth"]), float(number)))
            offset += float(data["group"].max()) + 1
    return {name: np.concatenate(each) for name, each in parts.items()}


def _collect_all(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Its own second look is off: it is made here, step by step.
    model = CryoSAM.from_settings(override(preset("embedded"), {"alignment": {"second_look": False}}))
    rank: Rank = _heuristic
    if not arguments.first:
        rankers = load_rankers()
        rank = lambda evidence: rankers.probability(evidence, "first")  # noqa: E731
    for path in sample_paths(arguments.pool)[arguments.skip :: arguments.every]:
        target = arguments.out / f"evidence-{path.stem}.npz"
        if target.exists():
            continue
        rng = np.random.default_rng([arguments.seed, int(path.stem.split("-")[-1])])
        found = collect(model, load_sample(path), rng, rank, arguments.candidates, arguments.thin)
        partial = target.with_suffix(".partial.npz")
        np.savez_compressed(partial, **found)  # type: ignore[arg-type]
        partial.replace(target)
        print(path.stem, len(found["truth"]), int(found["truth"].sum()), flush=True)


def _fit_all(arguments: argparse.Namespace) -> None:
    data = read(arguments.out)
    rankers = Rankers()
    for name in ("first", "second"):
        net = fit(data[name], data["truth"], data["group"], arguments.seed, arguments.weight_decay)
        setattr(rankers, name, net)
    tensors = {key: value.contiguous() for key, value in copy.deepcopy(rankers.state_dict()).items()}
    target = arguments.weights or Path(copick_cryosam.weights.__file__).with_name("ranker.safetensors")
    save_file(tensors, target)
    print(f"{target}  {len(data['truth'])} candidates, {int(data['truth'].sum())} true")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and collect or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "fit"))
    parser.add_argument("--pool", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", action="store_true", help="collect before there is a first net")
    parser.add_argument("--candidates", type=int, default=150, help="at most so many of a search are looked at")
    parser.add_argument("--thin", type=float, default=0.0, help="share of searches in which particles are taken out")
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=None, help="default: the package's own")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    (_collect_all if arguments.what == "collect" else _fit_all)(arguments)


if __name__ == "__main__":
    main()
