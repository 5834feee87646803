"""Poses sought in two passes are those of all rotations and shifts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from copick_cryosam import pose_search
from copick_cryosam.pose_search import PoseSearch, spread
from copick_cryosam.rotations import even_rotations
from copick_cryosam.turning import BOX_EDGE, half_space
from copick_cryosam.wedge import Wedge

WEDGE = Wedge(-60, 60)
ROTATIONS, CANDIDATES = 400, 150


@pytest.fixture(scope="module")
def frequencies():
    return half_space(6)[0]


@pytest.fixture(scope="module")
def values(frequencies):
    """A blob of a few Gaussians, read at even rotations."""
    rng = np.random.default_rng(0)
    places = torch.tensor(rng.normal(scale=3, size=(12, 3)), dtype=torch.float32)
    turned = frequencies @ torch.from_numpy(even_rotations(ROTATIONS)).float()
    waves = torch.exp(-2j * math.pi / BOX_EDGE * (turned @ places.T)).sum(dim=2)
    return waves * torch.exp(-(turned.norm(dim=2) ** 2) / 30)


def noisy(values, shifts, phases, noise):
    """Candidates at rotations and shifts of the grid, two thirds of them; noise alone the others."""
    rng = np.random.default_rng(1)
    rotation = torch.from_numpy(rng.integers(ROTATIONS, size=CANDIDATES))
    shift = torch.from_numpy(rng.integers(len(shifts), size=CANDIDATES))
    spectra = values[rotation] * phases[shift].conj()
    spectra[::3] = 0
    drawn = torch.from_numpy(rng.normal(size=(*spectra.shape, 2)).astype(np.float32))
    spread_of = float(values.abs().square().mean().sqrt())
    return spectra + noise * spread_of * torch.view_as_complex(drawn)


def exhaustive(values, known, spectra, phases, measured):
    """Correlation at every rotation and shift, (R, S, N), written plainly."""
    products = torch.einsum("rk,nk,sk->rsn", values.conj(), spectra, phases).real
    theirs = torch.einsum("rk,nk->rn", known, spectra.abs().square())
    own = (values.abs().square() * measured).sum(dim=1)
    return products / (theirs * own[:, None]).sqrt()[:, None]


def found(frequencies, values, known, spectra, dtype=torch.float32, shift=1):
    search = PoseSearch(frequencies, shift, dtype)
    turned = search.turned(values, known, torch.from_numpy(even_rotations(ROTATIONS)).float())
    return search.best(turned, spectra, WEDGE)


def phases_of(frequencies, shift=1):
    shifts = PoseSearch(frequencies, shift, torch.float32).shifts
    return shifts, torch.exp(2j * math.pi / BOX_EDGE * (shifts @ frequencies.T))


@pytest.mark.parametrize("known_everywhere", [True, False])
def test_with_every_rotation_kept_it_is_the_exhaustive_search(frequencies, values, known_everywhere, monkeypatch):
    monkeypatch.setattr(pose_search, "KEPT", ROTATIONS)
    shifts, phases = phases_of(frequencies)
    measured = WEDGE.measured(frequencies)
    turned = frequencies @ torch.from_numpy(even_rotations(ROTATIONS)).float()
    known = torch.ones_like(values.real) if known_everywhere else Wedge(-50, 50).measured(turned)
    template = values * known
    spectra = noisy(values, shifts, phases, 1.0) * measured
    scores = exhaustive(template, known, spectra, phases, measured)
    best, rotation, shift = found(frequencies, template, None if known_everywhere else known, spectra)
    np.testing.assert_allclose(best, scores.flatten(0, 1).amax(dim=0), rtol=1e-4)
    flat = rotation * len(shifts) + shift
    np.testing.assert_array_equal(flat, scores.flatten(0, 1).argmax(dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_passes_hardly_miss_the_best_pose(frequencies, values, dtype):
    shifts, phases = phases_of(frequencies)
    measured = WEDGE.measured(frequencies)
    spectra = noisy(values, shifts, phases, 1.5) * measured
    scores = exhaustive(values, torch.ones_like(values.real), spectra, phases, measured).flatten(0, 1)
    best, at, moved = found(frequencies, values, None, spectra, dtype)
    # what is told of a pose is its correlation, whatever it was chosen by
    np.testing.assert_allclose(best, scores.gather(0, (at * len(shifts) + moved)[None])[0], atol=1e-4)
    less = scores.amax(dim=0) - best
    assert less.mean() < 0.003
    particles = np.arange(CANDIDATES) % 3 > 0
    assert (less[particles] < 1e-3).float().mean() > 0.95


def test_no_shift_is_no_shift(frequencies, values):
    spectra = values[[3, 50, 120]]
    _, rotation, shift = found(frequencies, values, None, spectra, shift=0)
    np.testing.assert_array_equal(rotation, [3, 50, 120])
    np.testing.assert_array_equal(shift, 0)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_every_shift_is_one_step_from_one_that_the_first_pass_takes(frequencies, shift):
    shifts = PoseSearch(frequencies, shift, torch.float32).shifts
    few = shifts[spread(shifts)]
    nearest = torch.cdist(shifts, few).amin(dim=1)
    assert nearest.max() <= 1
    assert len(few) < 0.36 * len(shifts)
