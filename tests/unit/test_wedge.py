"""Which frequencies a tilt series measured, by geometry and from a tomogram."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from copick_cryosam.errors import DataError, InputError
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.simulate import Scene, simulate
from copick_cryosam.wedge import DEFAULT_WEDGE, Wedge, estimate_wedge


def test_the_measured_sector_is_between_the_tilts_and_friedel_symmetric() -> None:
    angles = torch.deg2rad(torch.tensor([-71.0, -69.0, 0.0, 39.0, 41.0, 90.0], dtype=torch.float64))
    zero = torch.zeros_like(angles)
    k = torch.stack([angles.sin(), zero + 0.3, angles.cos()], dim=-1)
    wedge = Wedge(-70, 40)
    assert wedge.measured(k).tolist() == [0, 1, 1, 1, 0, 0]
    assert wedge.measured(-5 * k).tolist() == [0, 1, 1, 1, 0, 0]
    turned = Wedge(-70, 40, "x")
    assert turned.measured(k[:, [0, 2, 1]]).tolist() == [0, 1, 1, 1, 0, 0]
    # the tilt axis and the origin are in every projection
    assert wedge.measured(torch.tensor([[0.0, 1, 0], [0, 0, 0]])).tolist() == [1, 1]


def test_the_boundary_is_inside_and_a_soft_edge_falls_over_its_width() -> None:
    k = torch.tensor([[math.sin(math.radians(60)), 0, math.cos(math.radians(60))]])
    out = torch.tensor([[math.cos(math.radians(60)), 0, -math.sin(math.radians(60))]])
    wedge = Wedge()
    assert wedge.measured(k).item() == 1
    steps = [wedge.measured(k + s * out, edge=0.1).item() for s in (0, 0.025, 0.05, 0.1, 0.2)]
    assert steps == pytest.approx([1, 0.75, 0.5, 0, 0], abs=1e-5)
    assert Wedge(-90, 90).measured(torch.randn(50, 3)).min() == 1


@pytest.mark.parametrize("bad", [(60, -60, "y"), (-100, 60, "y"), (-60, 60, "z")])
def test_impossible_wedges_are_refused(bad) -> None:
    with pytest.raises(InputError, match="expected"):
        Wedge(*bad)


@pytest.mark.parametrize(("tilts", "low_pass", "axis"), [(42, 0, "y"), (60, 25, "x"), (69, 0, "x")])
def test_tilts_and_axis_are_read_off_a_flat_noisy_tomogram(tilts, low_pass, axis) -> None:
    rng = np.random.default_rng(tilts)
    imaging = Imaging(tilt_range=tilts, snr=0.05, low_pass=low_pass)
    scene = Scene(shape_zyx=(40, 72, 88), counts=(5,), beads=1)
    volume, _ = simulate(scene, [random_shape(rng, radius=7)], imaging, rng)
    wedge = estimate_wedge(volume if axis == "y" else volume.transpose(0, 2, 1))
    assert wedge.estimated
    assert wedge.axis == axis
    assert wedge.tilt_min == pytest.approx(-tilts, abs=4)
    assert wedge.tilt_max == pytest.approx(tilts, abs=4)


def test_without_a_wedge_the_default_is_returned_and_told() -> None:
    noise = np.random.default_rng(0).normal(size=(33, 64, 50)).astype(np.float32)
    wedge = estimate_wedge(noise)
    assert wedge == DEFAULT_WEDGE
    assert not wedge.estimated
    assert wedge.quality < 0.2
    # interpolation along z empties high frequencies, which is no wedge
    assert not estimate_wedge(np.repeat(noise[::2], 2, axis=0)).estimated
    assert estimate_wedge(noise, Wedge(-50, 40, "x")) == Wedge(-50, 40, "x")
    with pytest.raises(DataError):
        estimate_wedge(np.full_like(noise, np.nan))
