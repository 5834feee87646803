"""When a walk from plane to plane no longer follows the object it started on."""

from __future__ import annotations

import torch
from torch import Tensor

from copick_cryosam.config import SegmenterSettings

__all__ = ["centroids", "follows"]


def follows(
    before: Tensor, now: Tensor, score: Tensor, first_score: Tensor, radius_vox: float, settings: SegmenterSettings
) -> Tensor:
    """Which of N walks still follow their object, judged by the mask of the last plane that was used.

    The paper's rule is the overlap of adjacent masks alone (CryoSAM section 2.1, tau_IoU). Each further rule
    holds only where its setting is not None. None of them knows that a particle has a top: near the pole of a
    ball the area falls fast and the overlap with it.

    Parameters
    ----------
    before : bool, shape (N, window, window), masks of the last planes that were used; none is empty
    now : bool, shape (N, window, window), masks of the planes just decoded; an empty one may or may not pass
    score : predicted IoU of `now`, shape (N,)
    first_score : predicted IoU of the prompted planes, shape (N,)
    radius_vox : radius of the object in voxels
    settings : `iou_stop`, `area_jump` with `area_rule`, `drift`, `score_drop`

    Returns
    -------
    bool, shape (N,)
    """
    good = _iou(before, now) >= settings.iou_stop
    if settings.area_jump is not None:
        old, new = _area(before), _area(now)
        good &= new <= settings.area_jump * old
        if settings.area_rule == "both":
            good &= old <= settings.area_jump * new
    if settings.drift is not None:
        moved = torch.linalg.vector_norm(centroids(now) - centroids(before), dim=1)
        good &= moved <= settings.drift * radius_vox
    if settings.score_drop is not None:
        good &= score >= settings.score_drop * first_score
    return good


def centroids(masks: Tensor) -> Tensor:
    """Row and column of each mask's centroid in its window, shape (N, 2); 0 where a mask is empty."""
    grid = torch.arange(masks.shape[-1], device=masks.device, dtype=torch.float32)
    area = _area(masks).clamp_min(1)
    return torch.stack([(masks.sum(2) * grid).sum(1) / area, (masks.sum(1) * grid).sum(1) / area], dim=1)


def _iou(one: Tensor, other: Tensor) -> Tensor:
    both = (one & other).flatten(1).sum(1)
    return both / (one | other).flatten(1).sum(1).clamp_min(1)


def _area(masks: Tensor) -> Tensor:
    return masks.flatten(1).sum(1)
