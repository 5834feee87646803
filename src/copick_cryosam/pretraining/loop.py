"""The training loop that both nets share: schedule, averaging, checkpoints, curve."""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from copick_cryosam.pretraining.pool import Sample, load_sample, sample_paths
from copick_cryosam.weights import float_weights

CHECKPOINT_EVERY = 200
"""Steps between two checkpoints."""
REPORT_EVERY = 50

Loss = Callable[[Sample, int], tuple[Tensor, Sequence[float]] | None]
"""From a sample and the step's number to the loss and what to follow of it; None where the sample is of no use."""


def options(description: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that both trainings have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pool", type=Path, nargs="+", required=True, help="folders of samples (see pool.py), taken in turn"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint.pt and curve.csv")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--init", type=Path, default=None, help="checkpoint whose averaged weights are the start, or shipped weights"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    return parser


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2% of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 100) / max(1, steps - 100)))))


def run(arguments: argparse.Namespace, net: nn.Module, loss_of: Loss, columns: Sequence[str]) -> None:
    """Train `net`; a checkpoint every `CHECKPOINT_EVERY` steps, from which an interrupted training goes on.

    Every step draws its sample and its random numbers from the seed and its own number, so that a resumed
    training is the uninterrupted one (as long as the pools are the same).
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.init is not None:
        net.load_state_dict(_weights_of(arguments.init))
    average = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=arguments.rate, weight_decay=1e-4)
    checkpoint = arguments.out / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    began = time.perf_counter()
    followed: list[Sequence[float]] = []
    while step < arguments.steps:
        paths = sample_paths(arguments.pool[step % len(arguments.pool)])
        chosen = int(np.random.default_rng([arguments.seed, step]).integers(len(paths)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.rate)
        found = loss_of(load_sample(paths[chosen]), step)
        if found is not None:
            optimiser.zero_grad(set_to_none=True)
            found[0].backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            follow_average(average, net, min(0.998, 1 - 1 / (step / 4 + 1.25)))
            followed.append(found[1])
        step += 1
        if step % REPORT_EVERY == 0 and followed:
            means = np.nanmean(np.array(followed, dtype=np.float64), axis=0)
            add_row(arguments.out / "curve.csv", [step, *means, time.perf_counter() - began])
            told = "  ".join(f"{name} {value:.3f}" for name, value in zip(columns, means, strict=True))
            print(f"step {step}  {told}  {time.perf_counter() - began:.0f} s  {len(paths)} samples", flush=True)
            followed = []
        if step % CHECKPOINT_EVERY == 0 or step == arguments.steps:
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)


def _weights_of(path: Path) -> dict[str, Tensor]:
    """Averaged weights of a checkpoint, or those of a file as `export` writes it."""
    if path.suffix == ".safetensors":
        return float_weights(path.read_bytes())
    average: dict[str, Tensor] = torch.load(path, weights_only=True)["average"]
    return average


def add_row(curve: Path, row: Sequence[float]) -> None:
    """Append a row to the training curve, a CSV file."""
    with curve.open("a", newline="") as file:
        csv.writer(file).writerow(row)


@torch.no_grad()
def follow_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Exponential average of weights and batch statistics."""
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)
