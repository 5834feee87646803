"""Averages of particles in known poses, simulated by turning one density and cutting its wedge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.averaging import (
    average,
    average_of,
    cut_boxes,
    cut_particles,
    fourier_shell_correlation,
    resolution,
)
from copick_cryosam.errors import InputError
from copick_cryosam.types import Instance, Pose, VoxelPoints
from copick_cryosam.wedge import DEFAULT_WEDGE, Wedge

pytestmark = pytest.mark.usefixtures("one_thread")
BLOBS = np.array([[0, 0, 0], [4, 0, 0], [0, -5, 0], [0, 2, 5], [-3, 3, 0]], dtype=float)
FULL = Wedge(-90, 90)


def painted(edge: int, rotation=None, offset=(0, 0, 0)) -> np.ndarray:
    """The reference's blobs, turned and moved; exact at any pose."""
    index = np.indices((edge,) * 3) - edge // 2
    centres = BLOBS @ (np.eye(3) if rotation is None else rotation).T + offset
    gaussians = [np.exp(-((index - c[:, None, None, None]) ** 2).sum(axis=0) / (2 * 1.5**2)) for c in centres]
    return np.sum(gaussians, axis=0).astype(np.float32)


def imaged(volume: np.ndarray, wedge: Wedge, noise: float, rng: np.random.Generator) -> np.ndarray:
    noisy = volume + rng.normal(size=volume.shape) * noise
    k = torch.from_numpy(np.stack(np.meshgrid(*[np.fft.fftfreq(n) for n in volume.shape], indexing="ij"), axis=-1))
    return np.fft.ifftn(np.fft.fftn(noisy) * wedge.measured(k).numpy()).real.astype(np.float32)


def particles(count: int, edge: int = 24, wedge: Wedge = DEFAULT_WEDGE, noise: float = 0.6, seed: int = 0):
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(count, random_state=rng).as_matrix()
    offsets = rng.uniform(-0.5, 0.5, size=(count, 3))
    boxes = [imaged(painted(edge, r, o), wedge, noise, rng) for r, o in zip(rotations, offsets, strict=True)]
    return torch.from_numpy(np.array(boxes)), rotations, torch.from_numpy(offsets).float()


def likeness(density: np.ndarray) -> float:
    """Correlation with the truth in the ball that holds it."""
    edge = density.shape[0]
    ball = np.linalg.norm(np.indices(density.shape) - edge // 2, axis=0) < 9
    return float(np.corrcoef(density[ball], painted(edge)[ball])[0, 1])


def test_more_particles_are_more_like_the_truth_and_resolve_more() -> None:
    boxes, rotations, offsets = particles(64)
    found = [
        average(boxes[:n], rotations[:n], Wedge(), voxel_spacing=10.0, offsets=offsets[:n]) for n in (1, 4, 16, 64)
    ]
    like = [likeness(one.density) for one in found]
    assert like == sorted(like)
    assert like[-1] > 0.85
    assert like[-1] > like[0] + 0.2
    reached = [one.resolution_05 for one in found[1:]]
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < reached[0]
    assert math.isnan(found[0].resolution_0143)
    assert [one.count for one in found] == [1, 4, 16, 64]
    # the poses the wrong way round give nothing like it
    wrong = average(boxes, rotations.transpose(0, 2, 1), Wedge(), voxel_spacing=10.0, offsets=offsets)
    assert likeness(wrong.density) < like[-1] - 0.2


@pytest.mark.parametrize("edge", [23, 24])
def test_one_whole_particle_is_turned_back_onto_the_reference(edge) -> None:
    boxes, rotations, offsets = particles(1, edge, FULL, noise=0)
    found = average(boxes, rotations, FULL, voxel_spacing=8.0, offsets=offsets)
    assert found.density.shape == (edge,) * 3
    assert likeness(found.density) > 0.995
    assert ndimage.center_of_mass(np.clip(found.density, 0.3, None) - 0.3) == pytest.approx(
        ndimage.center_of_mass(np.clip(painted(edge), 0.3, None) - 0.3), abs=0.25
    )
    assert found.frequencies[-1] == pytest.approx((edge // 2) / (edge * 8.0))


def test_particles_of_other_orientation_fill_the_wedge() -> None:
    boxes, rotations, offsets = particles(24, noise=0)
    single = average(boxes[:1], rotations[:1], Wedge(), voxel_spacing=10.0, offsets=offsets[:1])
    filled = average(boxes, rotations, Wedge(), voxel_spacing=10.0, offsets=offsets)
    assert likeness(filled.density) > 0.985 > 0.95 > likeness(single.density)
    # counting every frequency as measured leaves those of few particles too weak
    naive = average(boxes, rotations, FULL, voxel_spacing=10.0, offsets=offsets)
    assert likeness(filled.density) > likeness(naive.density)


def test_a_weight_of_zero_leaves_a_particle_out() -> None:
    boxes, rotations, offsets = particles(5)
    weights = np.array([1, 0, 2, 1, 0.0])
    some = weights > 0
    first = average(boxes, rotations, [Wedge()] * 5, voxel_spacing=10.0, offsets=offsets, weights=weights)
    other = average(
        boxes[some], rotations[some], Wedge(), voxel_spacing=10.0, offsets=offsets[some], weights=weights[some]
    )
    np.testing.assert_allclose(first.density, other.density, atol=1e-5)
    np.testing.assert_allclose(first.fsc, other.fsc, atol=1e-5)


def test_bad_particles_are_refused() -> None:
    boxes, rotations, _ = particles(2, 12)
    for case in (
        {"boxes": boxes[:0], "rotations": rotations[:0]},
        {"weights": np.zeros(2)},
        {"weights": np.array([1, -1.0])},
        {"rotations": rotations[:1]},
        {"boxes": boxes[:, :, :, :8]},
        {"boxes": boxes[:, :8, :8, :8]},
        {"wedges": [Wedge()]},
    ):
        with pytest.raises(InputError, match="expected"):
            average(**{"boxes": boxes, "rotations": rotations, "wedges": Wedge(), "voxel_spacing": 10.0, **case})


def test_boxes_are_cut_around_points_and_filled_with_the_mean() -> None:
    volume = torch.arange(6 * 7 * 8, dtype=torch.float32).reshape(6, 7, 8)
    boxes, offsets = cut_boxes(volume, VoxelPoints([[2.2, 2.7, 3.0], [0, 0, 0], [-9, 0, 0]]), 4)
    assert boxes[0, 2, 2, 2] == volume[2, 3, 3]
    torch.testing.assert_close(boxes[0], volume[0:4, 1:5, 1:5])
    torch.testing.assert_close(boxes[1, 2:, 2:, 2:], volume[:2, :2, :2])
    assert (boxes[2] == volume.mean()).all()
    np.testing.assert_allclose(offsets[0], [0.2, -0.3, 0], atol=1e-6)


def pick(centre=(0.0, 0, 0), precision=0.9, rotation=None, posed=True) -> Instance:
    return Instance(
        mask=np.ones((1, 1, 1), dtype=bool),
        origin_zyx=(0, 0, 0),
        prompt_zyx=(0.0, 0.0, 0.0),
        similarity=0.5,
        confidence=1.0,
        score=precision,
        expected_precision=precision,
        pose=Pose(rotation=np.eye(3) if rotation is None else rotation, centre_zyx=centre) if posed else None,
    )


def test_sure_picks_with_a_pose_are_cut_out() -> None:
    volume = np.random.default_rng(0).normal(size=(31, 40, 45)).astype(np.float32)
    turned = Rotation.random(random_state=0).as_matrix()
    picks = [
        pick((15.2, 20, 20)),
        pick(precision=0.49),
        pick(precision=math.nan),
        pick(posed=False),
        pick((14, 19.6, 25), 0.5, turned),
        pick((9, 9, 9)),
    ]
    found = cut_particles(volume, picks, 5.1, Wedge(), most=2)
    # four radii, odd
    assert found.boxes.shape == (2, 21, 21, 21)
    np.testing.assert_array_equal(found.boxes[0], volume[5:26, 10:31, 10:31])
    np.testing.assert_allclose(found.offsets, [[0.2, 0, 0], [0, -0.4, 0]], atol=1e-6)
    np.testing.assert_array_equal(found.rotations, [np.eye(3), turned])
    assert cut_particles(volume, picks[1:4], 5.1, Wedge(), most=9).boxes.shape[0] == 0


def test_particles_of_several_tomograms_are_averaged_in_turn() -> None:
    truth = painted(45)
    frame = np.zeros((60, 60, 60), dtype=np.float32)
    frame[7:52, 7:52, 7:52] = truth
    picks = [pick((29, 29, 29))] * 3
    # spacings that are nearly the same may give another odd edge
    parts = [cut_particles(frame, picks, radius, FULL, most=9) for radius in (5.25, 5.26)]
    assert [part.boxes.shape[-1] for part in parts] == [21, 23]
    nothing = cut_particles(frame, [], 5.25, FULL, most=9)
    made = average_of([parts[1], nothing, parts[0]], 8.0, 5.25)
    assert made.density.shape == (21, 21, 21)
    assert (made.count, made.voxel_spacing) == (6, 8.0)
    assert likeness(made.density) > 0.99
    # each half holds particles of both: where those of one are empty, neither half is, nor is one unharmed
    parts[0].boxes.zero_()
    for mixed in (average_of(parts, 8.0, 5.25), average_of(parts[::-1], 8.0, 5.25)):
        share = mixed.halves.std(axis=(1, 2, 3)) / made.halves.std(axis=(1, 2, 3))
        np.testing.assert_allclose(np.sort(share), [1 / 3, 2 / 3], atol=0.02)
    with pytest.raises(InputError, match="expected at least one pick of an expected precision"):
        average_of([nothing], 8.0, 5.25)


def test_fsc_of_equal_and_of_unrelated_cubes() -> None:
    one, two = torch.randn(2, 25, 25, 25, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fourier_shell_correlation(one, one), 1, atol=1e-5)
    np.testing.assert_allclose(fourier_shell_correlation(one, -one), -1, atol=1e-5)
    assert abs(fourier_shell_correlation(one, two)[4:]).max() < 0.3
    assert (fourier_shell_correlation(one, 0 * two) == 0).all()


def test_resolution_is_interpolated_between_shells() -> None:
    frequencies = np.array([0.01, 0.02, 0.03])
    assert resolution(np.array([1.0, 0.8, 0.2]), frequencies, 0.5) == pytest.approx(1 / 0.025)
    assert resolution(np.array([1.0, 0.8, 0.6]), frequencies, 0.5) == pytest.approx(1 / 0.03)
    assert resolution(np.array([0.4, 0.8, 0.6]), frequencies, 0.5) == math.inf
    assert math.isnan(resolution(np.full(3, np.nan), frequencies, 0.5))
