"""A block is encoded as it is and turned by half; the mean of its features turns with the volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from copick_cryosam.config import EncoderSettings
from copick_cryosam.encoders.embednet import load
from copick_cryosam.weights import weight_hash

AXES = {"z": (1, 2), "y": (0, 2), "x": (0, 1)}


def encoded(volume: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (C, Z/2, Y/2, X/2) and the map of centres."""
    settings = EncoderSettings(precision="fp32", turns=turns)
    features = load(settings, torch.device("cpu")).encode(volume)
    assert features.centre is not None
    return features.values.float().numpy(), features.centre


@pytest.mark.parametrize("axis", sorted(AXES))
def test_features_turn_with_the_volume(axis: str) -> None:
    axes = AXES[axis]
    # multiples of the coarsest cells, so that nothing is filled up at one end
    volume = np.random.default_rng(1).normal(size=(32, 48, 64)).astype(np.float32)
    turned = np.ascontiguousarray(np.flip(volume, axes))
    values, centre = encoded(volume, 4)
    again, centres = encoded(turned, 4)
    np.testing.assert_allclose(np.flip(again, [a + 1 for a in axes]), values, atol=2e-3)
    np.testing.assert_allclose(np.flip(centres, axes), centre, atol=1e-4)
    # alone, each is about as far from the other as noise makes it
    once, other = encoded(volume, 1)[0], encoded(turned, 1)[0]
    assert np.median((np.flip(other, [a + 1 for a in axes]) * once).sum(axis=0)) < 0.95


def test_features_stay_unit_vectors() -> None:
    volume = np.random.default_rng(2).normal(size=(21, 33, 47)).astype(np.float32)
    values, _ = encoded(volume, 4)
    np.testing.assert_allclose(np.linalg.norm(values, axis=0), 1, atol=2e-3)


def test_features_of_other_turns_are_told_apart() -> None:
    signatures = {load(EncoderSettings(turns=n), torch.device("cpu")).signature for n in range(1, 5)}
    assert len(signatures) == 4
    assert f"embednet-{weight_hash('embednet')[:12]}" in signatures
