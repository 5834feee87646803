"""Learn how the evidence of a candidate is weighed, on simulated pairs of tomograms.

    python -m copick_cryosam.pretraining.train_ranker collect --pool FOLDER --out FOLDER [--first]
    python -m copick_cryosam.pretraining.train_ranker fit --out FOLDER

The pool must hold samples that EmbedNet was not trained on: on kinds that it knows, similarity says more than it
does on others. `collect` searches every sample for each of its kinds, from one to five seeds in the first tomogram
(`collect_searches`). It goes on where it stopped. `fit` trains the nets and writes the package's weights: each sees
what those before it say that did not learn from the same sample. Who is averaged depends on the first net, so the
procedure is: collect --first, fit, collect, fit. `fit --keep first` learns the second and third net alone, on samples
that the package's first one has not seen, `fit --keep second` the third alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from copick_cryosam.config import override, preset
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.collect_searches import Collecting, collect
from copick_cryosam.pretraining.export import save_net, shipped
from copick_cryosam.pretraining.pool import load_sample, sample_paths
from copick_cryosam.pretraining.searches import Search, read_searches, save_searches
from copick_cryosam.ranker import MEMBERS, BetaCurve, Ranker, Rankers, load_rankers
from copick_cryosam.second_look import Rank
from copick_cryosam.types import FloatArray

FOLDS = 3
"""Nets of one kind that the next one learns with, each on all samples but a third."""
BATCH = 1024
"""Candidates that each member learns from in a step."""


class Lessons(Protocol):
    """What `fit` learns from: 1 for a particle, 0 for anything else, shape (N,), and where anything is learned."""

    @property
    def truth(self) -> FloatArray: ...
    @property
    def lesson(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a net is fitted.

    Attributes
    ----------
    seed : of the weights, the bootstraps and the batches
    weight_decay : of AdamW
    steps : of `BATCH` candidates for each member
    """

    seed: int = 0
    weight_decay: float = 0.1
    steps: int = 8000


def unseen(evidence: Sequence[FloatArray], searches: Sequence[Search], how: Training) -> list[FloatArray]:
    """What a net says of each search that learned from other samples only; arguments as of `fit`."""
    names = sorted({one.sample for one in searches})
    order = np.random.default_rng(how.seed).permutation(len(names))
    fold = dict(zip(names, order % FOLDS, strict=True))
    nets = []
    for left_out in range(FOLDS):
        others = [k for k, one in enumerate(searches) if fold[one.sample] != left_out]
        nets.append(fit([evidence[k] for k in others], [searches[k] for k in others], how))
    return [nets[fold[one.sample]].probability(x) for x, one in zip(evidence, searches, strict=True)]


def fit(evidence: Sequence[FloatArray], searches: Sequence[Lessons], how: Training) -> Ranker:
    """Train an ensemble: each member on a bootstrap of the searches, cross-entropy, so that it is calibrated.

    Parameters
    ----------
    evidence : of the candidates of each search
    """
    rows = np.concatenate([x[one.lesson] for x, one in zip(evidence, searches, strict=True)])
    truth = np.concatenate([one.truth[one.lesson] for one in searches])
    index = np.repeat(np.arange(len(searches)), [one.lesson.sum() for one in searches])
    torch.manual_seed(how.seed)
    net = Ranker(rows.shape[1])
    net.centre.copy_(torch.from_numpy(rows.mean(axis=0)))
    net.scale.copy_(torch.from_numpy(rows.std(axis=0) + 1e-3))
    rng = np.random.default_rng(how.seed)
    inputs, wanted = torch.from_numpy(rows).float(), torch.from_numpy(truth).float()
    draws = [_bootstrap(index, len(searches), rng) for _ in range(MEMBERS)]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
    for _ in range(how.steps):
        loss = torch.zeros(())
        for member, draw in zip(net.members, draws, strict=True):
            some = torch.from_numpy(draw[rng.integers(len(draw), size=BATCH)])
            x = net.standardised(inputs[some])
            loss = loss + F.binary_cross_entropy_with_logits(member(x)[:, 0], wanted[some])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return net.eval()


def _bootstrap(index: NDArray[np.int64], searches: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of as many searches as there are, drawn with replacement; `index` is the search of each row."""
    often = np.bincount(rng.integers(searches, size=searches), minlength=searches)[index]
    return np.repeat(np.arange(len(index)), often)


def _heuristic(evidence: FloatArray) -> FloatArray:
    """Before there is a net: similarity and correlation, in units of their spread."""
    return np.asarray(1 / (1 + np.exp(-(evidence[:, 2] + 0.5 * evidence[:, 31] - 3.5))))


def _collect_all(arguments: argparse.Namespace) -> None:
    (folder,) = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    # Its own second look is off: it is made here, step by step.
    model = CryoSAM.from_settings(override(preset("embedded"), {"alignment": {"second_look": False}}))
    rank: Rank = _heuristic
    if not arguments.first:
        rankers = load_rankers()
        rank = lambda evidence: rankers.probability(evidence, "first")  # noqa: E731
    how = Collecting(
        candidates=arguments.candidates,
        sparse=arguments.sparse,
        thin=arguments.thin,
        alone=arguments.alone,
        company=arguments.company,
    )
    for path in sample_paths(arguments.pool)[arguments.skip :: arguments.every]:
        # samples of several pools may bear the same number
        target = folder / f"searches-{arguments.pool.name}-{path.stem}.npz"
        if target.exists():
            continue
        rng = np.random.default_rng([arguments.seed, int(path.stem.split("-")[-1])])
        found = collect(model, load_sample(path), target.stem, rng, rank, how)
        save_searches(target, found)
        candidates, true = sum(len(one.truth) for one in found), sum(int(one.truth.sum()) for one in found)
        print(f"{path.stem}  {len(found)} searches, {candidates} candidates, {true} true", flush=True)


def _fit_all(arguments: argparse.Namespace) -> None:
    searches = [one for folder in arguments.out for one in read_searches(folder)]
    samples = len({one.sample for one in searches})
    if samples < FOLDS:
        raise SystemExit(
            f"{', '.join(map(str, arguments.out))}: expected searches of at least {FOLDS} samples, found {samples}; "
            "collect more"
        )
    how = Training(seed=arguments.seed, weight_decay=arguments.weight_decay, steps=arguments.steps)
    rankers = load_rankers() if arguments.keep else Rankers()
    first = [one.first for one in searches]
    if arguments.keep:
        sure = [rankers.first.probability(x) for x in first]
    else:
        rankers.first, sure = fit(first, searches, how), unseen(first, searches, how)
    second = [one.second(said) for one, said in zip(searches, sure, strict=True)]
    if arguments.keep == "second":
        probable = [rankers.second.probability(x) for x in second]
    else:
        rankers.second, probable = fit(second, searches, how), unseen(second, searches, how)
    rankers.third = fit([one.third(said) for one, said in zip(searches, probable, strict=True)], searches, how)
    # what these probabilities are worth on other kinds is not known yet (`fit_expectation`)
    rankers.curve = BetaCurve()
    target = arguments.weights or shipped("ranker")
    save_net(rankers, target)
    candidates, true = sum(int(one.lesson.sum()) for one in searches), sum(one.truth @ one.lesson for one in searches)
    print(f"{target}  {samples} samples, {len(searches)} searches, {candidates} candidates, {int(true)} true")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and collect or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Collecting()
    parser.add_argument("what", choices=("collect", "fit"))
    parser.add_argument("--pool", type=Path, default=None)
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="of searches; fit learns from several")
    parser.add_argument("--first", action="store_true", help="collect before there is a first net")
    parser.add_argument("--keep", choices=("first", "second"), help="nets up to this one stay as they ship")
    parser.add_argument("--candidates", type=int, default=usual.candidates, help="at most so many are looked at")
    parser.add_argument("--sparse", type=float, default=usual.sparse, help="share of searches with few of all kinds")
    parser.add_argument("--thin", type=float, default=usual.thin, help="of the others, share with few of the kind")
    parser.add_argument("--alone", type=float, default=usual.alone, help="of the others, share with few of other kinds")
    parser.add_argument("--company", type=float, default=usual.company, help="share of kinds sought in both together")
    parser.add_argument("--weight-decay", type=float, default=Training.weight_decay)
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=None, help="default: the package's own")
    arguments = parser.parse_args(argv)
    if arguments.what == "collect" and len(arguments.out) > 1:
        parser.error(f"--out: expected one folder to collect into, found {len(arguments.out)}; run collect for each")
    torch.set_num_threads(arguments.threads)
    (_collect_all if arguments.what == "collect" else _fit_all)(arguments)


if __name__ == "__main__":
    main()
