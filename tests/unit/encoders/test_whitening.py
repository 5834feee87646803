"""Whitening of tokens: their mean and covariance afterwards, and what shrinkage does with few samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from copick_cryosam.encoders import whitening
from copick_cryosam.encoders.whitening import shrunk_covariance, whiten

CHANNELS = 12


def crowded(shape=(20, 13, 17), seed=0) -> torch.Tensor:
    """Tokens with a large mean and variances from 0.1 to 10, correlated."""
    maker = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-0.5, 0.5, CHANNELS)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=maker))[0]
    return torch.randn(*shape, CHANNELS, generator=maker) * spread @ turn + 10


def statistics(tokens) -> tuple[np.ndarray, np.ndarray]:
    flat = tokens.float().reshape(-1, CHANNELS).double()
    return flat.mean(0).numpy(), flat.T.cov().numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("how", ["mean", "full"])
def test_whitened_tokens_have_mean_zero_and_unit_covariance(how, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(whitening, "_CHUNK", 13 * 17 * CHANNELS * 3)  # several chunks, the last incomplete
    tokens = crowded().to(dtype)
    before = statistics(tokens)[1]
    whiten(tokens, how)
    mean, covariance = statistics(tokens)
    np.testing.assert_allclose(mean, 0, atol=tolerance)
    if how == "mean":
        np.testing.assert_allclose(covariance, before, rtol=0.01, atol=0.01)
    else:
        np.testing.assert_allclose(covariance, np.eye(CHANNELS), atol=0.05)


def test_no_whitening_changes_nothing():
    tokens = crowded()
    whiten(tokens, "none")
    assert torch.equal(tokens, crowded())


def test_a_sample_is_enough(monkeypatch):
    """Statistics of every third token in each direction, about a thousand; the mean is that of all."""
    monkeypatch.setattr(whitening, "_SAMPLES", 1000)
    tokens = crowded((40, 31, 33))
    whiten(tokens, "full")
    mean, covariance = statistics(tokens)
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    np.testing.assert_allclose(covariance, np.eye(CHANNELS), atol=0.3)


def test_whitening_is_symmetric():
    """Not any square root: the axes keep their meaning, so that other tomograms' queries still fit."""
    tokens, other = crowded(seed=0), crowded(seed=0)
    flip = torch.diag(torch.tensor([1.0, -1.0] * (CHANNELS // 2)))
    whiten(tokens, "full")
    mirrored = other @ flip
    whiten(mirrored, "full")
    torch.testing.assert_close(mirrored, tokens @ flip, atol=1e-3, rtol=0)


def test_constant_tokens_become_nothing_instead_of_infinite():
    for how in ("mean", "full"):
        tokens = torch.full((3, 4, 5, CHANNELS), 7.0)
        whiten(tokens, how)
        np.testing.assert_allclose(tokens.numpy(), 0, atol=1e-5)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    """Against the definition, sample by sample; nothing to shrink with many samples, much with few."""
    maker = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.5, 2, CHANNELS)
    for count, low, high in ((8, 0.2, 1.0), (20000, 0.0, 0.01)):
        x = (torch.randn(count, CHANNELS, generator=maker) * spread).double()
        x -= x.mean(0)
        raw = x.T @ x / count
        target = raw.trace() / CHANNELS * torch.eye(CHANNELS, dtype=torch.float64)
        distance = (raw - target).square().sum()
        scatter = sum((torch.outer(one, one) - raw).square().sum() for one in x) / count**2
        share = float(min(scatter / distance, torch.tensor(1.0)))
        assert low <= share <= high
        np.testing.assert_allclose(shrunk_covariance(x), share * target + (1 - share) * raw, atol=1e-9)
    assert torch.linalg.eigvalsh(shrunk_covariance(torch.randn(4, CHANNELS, generator=maker))).min() > 0
