"""Background statistics taken off the tokens: raw cosines of vision transformers crowd together.

All tokens of a view share a large mean, and a few directions hold most of what is left. Both say nothing about
which object a token shows, and both dominate a cosine. Interpolation is linear with weights that sum to one, so
what is done here to the tokens is done to the feature of every voxel.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["inverse_root", "whiten"]

_SAMPLES = 50_000
_CHUNK = 1 << 24


def whiten(tokens: Tensor, how: Literal["none", "mean", "full"]) -> None:
    """Whiten the tokens of one view in place, shape (P, h, w, C).

    "mean" subtracts the mean token of the view. "full" also multiplies by the inverse square root of the
    covariance (the symmetric one, so that axes keep their meaning and tomograms can be compared), which is
    estimated from a regular sample of at most about 50,000 tokens and shrunk, see `shrunk_covariance`.
    """
    if how == "none":
        return
    mean = torch.zeros(tokens.shape[3], dtype=torch.float64, device=tokens.device)
    planes = max(1, _CHUNK // tokens[0].numel())
    for part in torch.split(tokens, planes):
        mean += part.float().sum((0, 1, 2)).double()
    mean /= tokens[..., 0].numel()
    whitening = inverse_root(shrunk_covariance(_sample(tokens) - mean.float())) if how == "full" else None
    for part in torch.split(tokens, planes):
        centred = part.float() - mean.float()
        part.copy_(centred if whitening is None else centred @ whitening)


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Covariance of centred samples (N, C), drawn towards a multiple of the identity: float64, shape (C, C).

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
    Multivariate Analysis 88 (2004) 365-411. Neighbouring tokens are alike, so that there are fewer independent
    samples than N: the shrinkage is the least that is needed.
    """
    x = centred.double()
    count, channels = x.shape
    covariance = x.T @ x / count
    mean_variance = covariance.diagonal().mean()
    target = mean_variance * torch.eye(channels, dtype=x.dtype, device=x.device)
    distance = (covariance - target).square().sum()
    scatter = x.square().sum(1).square().sum() / count**2 - covariance.square().sum() / count
    shrinkage = (scatter / distance.clamp(min=1e-300)).clamp(0, 1)
    return shrinkage * target + (1 - shrinkage) * covariance


def inverse_root(covariance: Tensor) -> Tensor:
    """Symmetric inverse square root of a covariance, float32, shape (C, C)."""
    values, vectors = torch.linalg.eigh(covariance)
    # directions without any variance (a constant view) are left at 0, not blown up
    least = 1e-9 * values.max().clamp(min=1e-9)
    scale = torch.where(values > least, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    root: Tensor = (vectors * scale) @ vectors.T
    return root.float()


def _sample(tokens: Tensor) -> Tensor:
    step = max(1, int((tokens[..., 0].numel() / _SAMPLES) ** (1 / 3) + 0.999))
    return tokens[::step, ::step, ::step].reshape(-1, tokens.shape[3]).float()
