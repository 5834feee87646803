"""Which of SAM's masks is taken: one click can mean a part, a whole, or a group of wholes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["MaskChoice", "choose"]

MaskChoice = Literal["single", "best", "consistent"]

_LEAST = 1e-6
"""Least value of a factor: where all masks are equally bad by one of them, the other still decides."""


def choose(iou: Tensor, masks: Tensor, before: Tensor | None, choice: MaskChoice) -> Tensor:
    """Index of the mask to take for each of N prompts, int64, shape (N,), 0 to 3.

    Mask 0 is SAM's single mask, taken by ``single`` on every plane, on the clicked one too. ``best`` takes the one
    of the other three with the highest predicted IoU; ``consistent`` the one with the highest predicted IoU x IoU
    with the mask before x ratio of the smaller to the larger area of the two. Without a mask before, or after an
    empty one, the predicted IoU alone decides.

    Parameters
    ----------
    iou : float, shape (N, 4), predicted
    masks : bool, shape (N, 4, h, w), padding False
    before : bool, shape (N, h, w), of the neighbouring plane, padding False; None on the clicked plane
    choice : see above
    """
    if choice == "single":
        return torch.zeros(len(iou), dtype=torch.int64, device=iou.device)
    score = iou[:, 1:]
    if choice == "consistent" and before is not None:
        # SAM's predictions can be negative; as a factor, one would favour the mask that agrees least.
        score = score.clamp_min(_LEAST) * _agreement(masks[:, 1:], before).clamp_min(_LEAST)
    return score.argmax(1) + 1


def _agreement(masks: Tensor, before: Tensor) -> Tensor:
    """IoU x ratio of areas of each of M masks with the one before, (N, M)."""
    both = (masks & before[:, None]).flatten(2).sum(2)
    areas, old = masks.flatten(2).sum(2), before.flatten(1).sum(1)[:, None]
    iou = both / (areas + old - both).clamp_min(1)
    ratio = torch.minimum(areas, old) / torch.maximum(areas, old).clamp_min(1)
    return iou * ratio
