"""Train PromptNet on simulated tomograms.

    python -m copick_cryosam.pretraining.train_promptnet --pool FOLDER --out FOLDER --steps 1000

Each step clicks on particles of one tomogram and follows them over a few slabs of planes, as cross-plane
self-prompting does: the net's own mask of a slab's last plane prompts the next slab, so that it learns to
recover from its own drift and to notice where the object ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.contrast import standardise
from copick_cryosam.pretraining import loop
from copick_cryosam.pretraining.pool import Sample
from copick_cryosam.segmenters.promptnet import (
    PIXELS,
    TOLD,
    PromptNet,
    assemble,
    between,
    pitch_of,
    planes_told,
    to_pixels,
    windows_of,
)

ROLLOUT = 3
"""Slabs followed from each start."""
PROMPTS = 14
"""Prompts per tomogram and axis."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """Where a roll-out begins, rows are prompts that share a tomogram, an axis and a window.

    planes (N,), clicks (N, 2) in voxels of the plane, windows (N, 2), labels (N,), direction (N,) of -1 or 1,
    previous (N, 48, 48) mask logits, of a plane `half` + 1 voxels before, meaningful where followed (N,) is True.
    half : planes told on each side of the prompted one, in voxels; a walk's steps are twice that and one more
    """

    planes: Tensor
    clicks: Tensor
    windows: Tensor
    labels: Tensor
    direction: Tensor
    previous: Tensor
    followed: Tensor
    half: int


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
    half = planes_told(int(rng.integers(1, TOLD + 1)), window)
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
        half=half,
    )
    before = truth_of(labels, start.planes - (half + 1) * start.direction, start.windows, window, wanted).float()
    # a mask as the net itself would give it: soft, a little too large or too small, unsure
    noise = torch.from_numpy(rng.normal(size=(len(chosen), 1, 8, 8))).float()
    soft = F.avg_pool2d(before[:, None], 3, stride=1, padding=1)
    wobble = F.interpolate(noise, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    logits = ((soft - 0.5) * 8 + wobble * 1.5)[:, 0]
    # where the plane before is empty there is nothing to follow: such a roll-out begins with its click
    usable = start.followed & (before.sum(dim=(1, 2)) > 4)
    clicks_followed = peak(logits) * (window / PIXELS) + (0.5 * window / PIXELS - 0.5) + start.windows
    clicks_used = torch.where(usable[:, None], clicks_followed, start.clicks)
    return replace(start, clicks=clicks_used, previous=logits, followed=usable)


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
    """Loss summed over a roll-out, and the IoU with the truth in each of its slabs where the object is."""
    planes, clicks, previous = start.planes, start.clicks, start.previous
    pitch = pitch_of(window)
    away = start.followed.float() * (start.half + 1) / pitch
    total, scores = torch.zeros(()), []
    for _ in range(ROLLOUT):
        images, inside = windows_of(stack, planes, start.direction, start.windows, window)
        x = assemble(images, inside, to_pixels(clicks, start.windows, window), previous, away)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            outputs = net(x.contiguous(memory_format=torch.channels_last))
        levels = [planes + start.direction * round(step * pitch) for step in range(-TOLD, TOLD + 1)]
        masks = [truth_of(labels, one, start.windows, window, start.labels) for one in levels]
        truth = torch.stack(masks, dim=1).flatten(0, 1)
        loss, iou = plane_loss(tuple(each.flatten(0, 1) for each in outputs), truth)
        total = total + loss
        scores.append(iou[truth.sum(dim=(1, 2)) > 4].mean())
        previous = between(outputs[0].detach().float(), torch.tensor([start.half / pitch]))[:, 0]
        clicks = peak(previous) * (window / PIXELS) + (0.5 * window / PIXELS - 0.5) + start.windows
        planes = planes + start.direction * (2 * start.half + 1)
        away = torch.full_like(away, (start.half + 1) / pitch)
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
    """Train with the options of `main`."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    net = PromptNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(sample: Sample, step: int) -> tuple[Tensor, Sequence[float]] | None:
        rng = np.random.default_rng([arguments.seed, step, 1])
        parts = [found for found in (step_loss(net, sample, rng, bf16=arguments.bf16) for _ in range(2)) if found]
        if not parts:
            return None
        loss = torch.stack([part[0] for part in parts]).mean()
        scores = torch.stack([part[1] for part in parts]).nanmean(dim=0)
        return loss, (float(loss.detach()), *scores.tolist())

    loop.run(arguments, net, loss_of, ("loss", *(f"IoU-{plane}" for plane in range(ROLLOUT))))


def main() -> None:
    """Parse the command line and train."""
    train(loop.options(__doc__, steps=1000).parse_args())


if __name__ == "__main__":
    main()
