"""Train PromptNet on simulated tomograms.

    python -m copick_cryosam.pretraining.train_promptnet --pool FOLDER --out FOLDER --steps 4000

Each step clicks on particles of one tomogram and follows them over a few planes, as cross-plane
self-prompting does: the net's own mask of one plane prompts the next, so that it learns to recover
from its own drift and to notice where the object ends.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.contrast import standardise
from copick_cryosam.pretraining.pool import Sample, load_sample, sample_paths
from copick_cryosam.pretraining.train_embednet import _follow, add_row, learning_rate
from copick_cryosam.segmenters.promptnet import PIXELS, PromptNet, assemble, to_pixels, windows_of

ROLLOUT = 4
"""Planes followed from each start."""
PROMPTS = 14
"""Prompts per tomogram and axis."""
CHECKPOINT_EVERY = 200


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """Where a roll-out begins, rows are prompts that share a tomogram, an axis and a window.

    planes (N,), clicks (N, 2) in voxels of the plane, windows (N, 2), labels (N,), direction (N,) of -1 or 1,
    previous (N, 48, 48) mask logits, meaningful where followed (N,) is True.
    """

    planes: Tensor
    clicks: Tensor
    windows: Tensor
    labels: Tensor
    direction: Tensor
    previous: Tensor
    followed: Tensor


def truth_of(labels: Tensor, planes: Tensor, windows: Tensor, window: int, wanted: Tensor) -> Tensor:
    """True masks of the prompts at 48 x 48, nearest voxel, shape (N, 48, 48); labels is (P, H, W)."""
    ramp = ((torch.arange(PIXELS) + 0.5) * window / PIXELS - 0.5).round().long()
    rows, columns = windows[:, :1] + ramp, windows[:, 1:] + ramp
    depth, height, width = labels.shape
    valid = (
        ((rows >= 0) & (rows < height))[:, :, None]
        & ((columns >= 0) & (columns < width))[:, None, :]
        & ((planes >= 0) & (planes < depth))[:, None, None]
    )
    found = labels[
        planes.clamp(0, depth - 1)[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]
    return (found == wanted[:, None, None]) & valid


def draw_starts(
    sample: Sample, t: int, labels: Tensor, axis: int, window: int, chosen: NDArray[np.int64], rng: np.random.Generator
) -> Start:
    """Half the roll-outs begin with a click near a particle's centre, half inside it or just before its end."""
    rows = [a for a in range(3) if a != axis]
    planes, clicks, windows, direction, followed = [], [], [], [], []
    for particle in chosen:
        centre, radius = sample.centres[t][particle], float(sample.radii[t][particle])
        jitter = rng.normal(size=3) * 0.16 * radius
        prompt = np.clip(centre + jitter, 0, np.array(sample.volumes.shape[1:]) - 1)
        side = int(rng.choice([-1, 1]))
        follow = rng.random() < 0.5
        start = prompt[axis] + (side * rng.uniform(0.1, 1.25) * radius if follow else 0.0)
        planes.append(int(np.clip(round(start), 0, sample.volumes.shape[1 + axis] - 1)))
        clicks.append(prompt[rows])
        windows.append(np.round(prompt[rows]).astype(int) - window // 2)
        direction.append(side)
        followed.append(follow)
    wanted = torch.from_numpy(chosen + 1)
    start = Start(
        planes=torch.tensor(planes),
        clicks=torch.tensor(np.array(clicks), dtype=torch.float32),
        windows=torch.from_numpy(np.array(windows)),
        labels=wanted,
        direction=torch.tensor(direction),
        previous=torch.zeros(len(chosen), PIXELS, PIXELS),
        followed=torch.tensor(followed),
    )
    before = truth_of(labels, start.planes - start.direction, start.windows, window, wanted).float()
    # a mask as the net itself would give it: soft, a little too large or too small, unsure
    noise = torch.from_numpy(rng.normal(size=(len(chosen), 1, 8, 8))).float()
    soft = F.avg_pool2d(before[:, None], 3, stride=1, padding=1)
    wobble = F.interpolate(noise, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    logits = ((soft - 0.5) * 8 + wobble * 1.5)[:, 0]
    # where the plane before is empty there is nothing to follow: such a roll-out begins with its click
    usable = start.followed & (before.sum(dim=(1, 2)) > 4)
    clicks_followed = peak(logits) * (window / PIXELS) + (0.5 * window / PIXELS - 0.5) + start.windows
    return Start(
        planes=start.planes,
        clicks=torch.where(usable[:, None], clicks_followed, start.clicks),
        windows=start.windows,
        labels=start.labels,
        direction=start.direction,
        previous=logits,
        followed=usable,
    )


def peak(logits: Tensor) -> Tensor:
    """Row and column of the most confident pixel, (N, 2) float."""
    best = logits.flatten(1).argmax(dim=1)
    return torch.stack([best // PIXELS, best % PIXELS], dim=1).float()


def plane_loss(outputs: tuple[Tensor, Tensor, Tensor], truth: Tensor) -> tuple[Tensor, Tensor]:
    """Focal + Dice on the mask, L1 on the IoU, cross-entropy on the presence. Returns the loss and the true IoU."""
    logits, iou, presence = (o.float() for o in outputs)
    target = truth.float()
    there = (target.sum(dim=(1, 2)) > 4).float()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (ce * (1 - torch.exp(-ce)) ** 2).mean(dim=(1, 2))
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(1, 2)) + target.sum(dim=(1, 2)) + 1)
    hard = logits.detach() > 0
    union = (hard | truth).sum(dim=(1, 2)).clamp(min=1)
    true_iou = (hard & truth).sum(dim=(1, 2)) / union
    judged = (iou.sigmoid() - true_iou).abs() * there
    exists = F.binary_cross_entropy_with_logits(presence, there)
    return (10 * focal + dice * there + 0.3 * judged).mean() + 0.5 * exists, true_iou


def follow(
    net: PromptNet, stack: Tensor, labels: Tensor, start: Start, window: int, *, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Loss summed over a roll-out, and the IoU with the truth on each of its planes where the object is."""
    planes, clicks, previous = start.planes, start.clicks, start.previous
    total, scores = torch.zeros(()), []
    for step in range(ROLLOUT):
        images, inside = windows_of(stack, planes, start.windows, window)
        pixels = to_pixels(clicks, start.windows, window)
        x = assemble(images, inside, pixels, previous)
        if step == 0:  # mask and flag exist only for those that follow a plane
            x[:, -2:] *= start.followed[:, None, None, None]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            outputs = net(x.contiguous(memory_format=torch.channels_last))
        truth = truth_of(labels, planes, start.windows, window, start.labels)
        loss, iou = plane_loss(outputs, truth)
        total = total + loss
        scores.append(iou[truth.sum(dim=(1, 2)) > 4].mean())
        previous = outputs[0].detach().float()
        clicks = peak(previous) * (window / PIXELS) + (0.5 * window / PIXELS - 0.5) + start.windows
        planes = planes + start.direction
    return total / ROLLOUT, torch.stack(scores)


def step_loss(net: PromptNet, sample: Sample, rng: np.random.Generator, *, bf16: bool) -> tuple[Tensor, Tensor] | None:
    """One tomogram, one kind of particle, one axis."""
    t, axis = int(rng.integers(2)), int(rng.integers(3))
    inside = ((sample.centres[t] >= 0) & (sample.centres[t] < np.array(sample.volumes.shape[1:]))).all(axis=1)
    present = np.flatnonzero(inside)
    if len(present) == 0:
        return None
    kind = int(rng.choice(np.unique(sample.kinds[t][present])))
    same = present[sample.kinds[t][present] == kind]
    chosen = rng.choice(same, size=PROMPTS, replace=True)
    # users state radii that are somewhat off
    radius = float(sample.radii[t][same[0]]) * float(rng.uniform(0.8, 1.3))
    window = 2 * int(np.ceil(2 * radius)) + 1
    volume = torch.from_numpy(standardise(sample.volumes[t]))
    labels = torch.from_numpy(sample.labels[t].astype(np.int64)).movedim(axis, 0)
    start = draw_starts(sample, t, labels, axis, window, chosen, rng)
    return follow(net, volume.movedim(axis, 0)[None, None], labels, start, window, bf16=bf16)


def train(arguments: argparse.Namespace) -> None:
    """The loop; a checkpoint every `CHECKPOINT_EVERY` steps, from which an interrupted training goes on."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    net = PromptNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
    began, losses, scores = time.perf_counter(), [], []
    while step < arguments.steps:
        rng = np.random.default_rng([arguments.seed, step])
        paths = sample_paths(arguments.pool)
        sample = load_sample(paths[int(rng.integers(len(paths)))])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.rate)
        net.train()
        parts = [found for found in (step_loss(net, sample, rng, bf16=arguments.bf16) for _ in range(2)) if found]
        if parts:
            loss = torch.stack([part[0] for part in parts]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            _follow(average, net, min(0.998, 1 - 1 / (step / 4 + 1)))
            losses.append(float(loss.detach()))
            scores.append(np.nanmean([part[1].numpy() for part in parts], axis=0))
        step += 1
        if step % 50 == 0:
            row = np.nanmean(scores, axis=0)
            add_row(arguments.out / "curve.csv", [step, float(np.mean(losses)), *row, time.perf_counter() - began])
            print(
                f"step {step}  loss {np.mean(losses):.3f}  IoU by plane {np.round(row, 3)}  "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
            losses, scores = [], []
        if step % CHECKPOINT_EVERY == 0 or step == arguments.steps:
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
