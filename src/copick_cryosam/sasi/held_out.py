"""Points that are held out of a training to tell when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from copick_cryosam.sasi.infill import Windows
from copick_cryosam.sasi.losses import soft_dice_loss
from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.points import LabelledPoints, ParticleClass, TrainingTomogram
from copick_cryosam.sasi.settings import TrainingSettings


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Tomograms to learn from, and held-out points.

    Attributes
    ----------
    tomograms : held-out points have the weight 0: their voxels teach nothing, neither particle nor background
    held_out : (tomogram, point) of each
    """

    tomograms: list[TrainingTomogram]
    held_out: list[tuple[int, int]]


def split(tomograms: Sequence[TrainingTomogram], classes: Sequence[ParticleClass], settings: TrainingSettings) -> Split:
    """Hold out a share of the points of each class that a human vouched for (weight 1), drawn by the seed.

    At least one of a class with `held_out_from` or more such points, none of one with fewer, nor with a share of 0.
    """
    share, least = settings.held_out, settings.held_out_from
    rng = np.random.default_rng(settings.seed)
    held_out: list[tuple[int, int]] = []
    for number in range(1, len(classes) + 1):
        sure = [
            (t, int(i))
            for t, one in enumerate(tomograms)
            for i in np.flatnonzero((one.labelled.classes == number) & (one.labelled.weights >= 1))
        ]
        count = max(1, round(share * len(sure))) if share > 0 and len(sure) >= least else 0
        held_out += [sure[k] for k in sorted(rng.choice(len(sure), count, replace=False))]
    return Split(
        tomograms=[
            replace(one, labelled=_without(one.labelled, [i for where, i in held_out if where == t]))
            for t, one in enumerate(tomograms)
        ],
        held_out=held_out,
    )


def _without(labelled: LabelledPoints, which: Sequence[int]) -> LabelledPoints:
    weights = labelled.weights.copy()
    weights[list(which)] = 0
    return replace(labelled, weights=weights)


@torch.no_grad()
def held_out_loss(network: Network, windows: Windows) -> float:
    """Soft Dice loss on windows around held-out points, mean over them and over their mirror images; 0 to 1.

    Without the focal loss: that rises as the net becomes sure, also where it errs no more often than before.
    """
    was = network.training
    network.eval()
    losses = []
    for dims in ((), (2,), (3,), (4,)):
        volume = windows.volume.flip(dims) if dims else windows.volume
        labels = windows.labels.flip(tuple(d - 1 for d in dims)) if dims else windows.labels
        losses += [soft_dice_loss(network(volume[k : k + 1]), labels[k : k + 1]) for k in range(len(volume))]
    network.train(was)
    return float(Tensor.mean(torch.stack(losses)))
