"""What SaSi minimises: Dice and focal loss of labelled voxels, consistency under transforms, and NT-Xent.

MONAI's Dice and focal losses know neither voxels to ignore nor voxel weights together, so they are written out here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.sasi.labels import IGNORE
from copick_cryosam.sasi.settings import LossSettings

_SMOOTH = 1e-5
"""Added to both sides of the Dice ratio; voxels."""


def dice_focal(logits: Tensor, labels: Tensor, weights: Tensor | None, settings: LossSettings) -> Tensor:
    """The supervised loss: `settings.dice` x soft Dice loss + `settings.focal` x focal loss (20 and 1 in the paper).

    Dice: 1 - 2 sum(p y) / (sum(p) + sum(y)) of each foreground class, sums over the whole batch, mean over the classes
    that its labels hold; 0 where they hold none. Focal: mean over voxels of -(1 - p)^gamma log p of the voxel's own
    class, background included. Voxels labelled `IGNORE` count in neither; all others by their weight.

    Parameters
    ----------
    logits : shape (B, K + 1, Z, Y, X); computed with in float32
    labels : whole numbers, 0 to K or `IGNORE`; shape (B, Z, Y, X)
    weights : shape (B, Z, Y, X); none: all 1
    """
    counts = (labels != IGNORE).float() if weights is None else weights.float() * (labels != IGNORE)
    target = labels.clamp(min=0).long()
    log_p = logits.float().log_softmax(dim=1)
    own = log_p.gather(1, target[:, None])[:, 0]
    # never quite 0, where a power below 1 has no slope
    unknown = (-torch.expm1(own)).clamp(min=1e-6)
    focal = (counts * unknown**settings.gamma * -own).sum() / counts.sum().clamp(min=_SMOOTH)
    return settings.dice * _dice(log_p.exp(), target, counts) + settings.focal * focal


def soft_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The Dice part of `dice_focal` alone, its weight 1 and all voxels alike; parameters as there."""
    counts = (labels != IGNORE).float()
    return _dice(logits.float().softmax(dim=1), labels.clamp(min=0).long(), counts)


def _dice(p: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    dims = (0, 2, 3, 4)
    y = F.one_hot(target, p.shape[1]).movedim(-1, 1)[:, 1:].to(p.dtype) * counts[:, None]
    p = p[:, 1:]
    held = y.sum(dims)
    both = (p * y).sum(dims)
    either = (p * counts[:, None]).sum(dims) + held
    losses = 1 - (2 * both + _SMOOTH) / (either + _SMOOTH)
    there = (held > 0).to(p.dtype)
    return (losses * there).sum() / there.sum().clamp(min=1)


def consistency(logits: Tensor, moved: Tensor, inside: Tensor, settings: LossSettings) -> Tensor:
    """Self-interpreted consistency: what is found in T(x) against T of what is found in x, the same loss.

    The target is the argmax of `moved`, through which no gradient passes. The loss is exactly 0 where each voxel's
    logits favour the target by so much that softmax is 1 in float32, and falls to 0 as they do.

    Parameters
    ----------
    logits : of T(x); shape (B, K + 1, Z, Y, X)
    moved : T of the prediction on x, logits or probabilities; shape (B, K + 1, Z, Y, X)
    inside : bool, `Spatial.inside`: voxels that T takes from within x; others do not count; shape (B, Z, Y, X)
    """
    target = moved.detach().argmax(dim=1).masked_fill(~inside.to(moved.device), IGNORE)
    return dice_focal(logits, target, None, settings)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent of SimCLR (Chen et al., 2020): a_i and b_i are alike, and unlike the 2 B - 2 others.

    Parameters
    ----------
    a, b : vectors of two views of B windows, not normalised; shape (B, e), B at least 2
    """
    count = len(a)
    if count < 2 or a.shape != b.shape:
        raise ValueError(f"views: expected two of one shape (B, e), B at least 2, found {a.shape} and {b.shape}")
    vectors = F.normalize(torch.cat([a, b]).float(), dim=1)
    with torch.autocast(vectors.device.type, enabled=False):
        similarity = vectors @ vectors.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=a.device)
    partner = torch.arange(2 * count, device=a.device).roll(count)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)
