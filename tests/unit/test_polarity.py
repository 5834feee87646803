"""What the encoder recognises at the seeds decides where the contrast cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from copick_cryosam.config import EncoderSettings
from copick_cryosam.contrast import decide_polarity, seed_contrast, standardise
from copick_cryosam.encoders import load_encoder
from copick_cryosam.errors import SeedError
from copick_cryosam.polarity import foreground_both_ways
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.simulate import Scene, centres_inside, simulate
from copick_cryosam.types import VoxelPoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, VoxelPoints, float]:
    """A tomogram at an SNR of 0.04 with its particles bright, and one seed."""
    rng = np.random.default_rng(5)
    shape = random_shape(rng, family="capped", radius=9)
    volume, specimen = simulate(Scene(shape_zyx=(48, 96, 96), counts=(8,)), [shape], Imaging(snr=0.04), rng)
    centres = centres_inside(specimen, 0)
    middle = centres[[np.argmin(np.linalg.norm(centres - np.array([24, 48, 48]), axis=1))]]
    return standardise(volume), VoxelPoints(middle), shape.radius


def test_embednet_recognises_particles_in_the_right_polarity(noisy) -> None:
    volume, seed, radius = noisy
    encoder = load_encoder(EncoderSettings(), CPU)
    bright, dark = foreground_both_ways(volume, seed, radius, encoder)
    assert bright > 0.15
    assert bright > 1.3 * dark
    # the other way round, the answers change places
    assert foreground_both_ways(-volume, seed, radius, encoder) == pytest.approx((dark, bright))


def test_an_encoder_without_foreground_has_no_answer(noisy) -> None:
    volume, seed, radius = noisy
    assert foreground_both_ways(volume, seed, radius, load_encoder(EncoderSettings(name="fake"), CPU)) is None


def test_who_decides() -> None:
    rng = np.random.default_rng(0)
    flat = standardise(rng.normal(size=(40, 48, 44)).astype(np.float32))
    seed = VoxelPoints(np.array([[20.0, 24.0, 22.0]]))
    contrast, error = seed_contrast(flat, seed, 6.0)
    assert abs(contrast) / error < 3
    # an unclear contrast: what is recognised decides, either way
    assert decide_polarity(flat, seed, 6.0, "auto", lambda: (0.6, 0.1)) == "light"
    assert decide_polarity(flat, seed, 6.0, "auto", lambda: (0.1, 0.6)) == "dark"
    # nothing recognised, or as much in both
    for answer in ((0.01, 0.001), (0.5, 0.45), None):
        with pytest.raises(SeedError, match="neither darker nor brighter"):
            decide_polarity(flat, seed, 6.0, "auto", lambda answer=answer: answer)
    # a clear contrast is not put to the encoder
    clear = flat.copy()
    clear[15:26, 19:30, 17:28] += 3

    def never() -> tuple[float, float]:
        raise AssertionError("the encoder was asked")

    assert decide_polarity(clear, seed, 6.0, "auto", never) == "light"
