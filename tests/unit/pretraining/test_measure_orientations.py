"""Errors of orientations against the truth, with symmetry and the seed's frame."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.measure_alignment import KindAlignment, chance_level, match, particles_inside, table
from copick_cryosam.pretraining.measure_orientations import (
    errors_in_common_frame,
    orientation_errors,
    self_symmetries,
)
from copick_cryosam.pretraining.score_averages import AverageScore, Pick, density_in_pose, score_averages
from copick_cryosam.pretraining.simulate import MARGIN, Specimen
from copick_cryosam.rotations import angles_between
from copick_cryosam.types import Instance, Pose
from copick_cryosam.wedge import Wedge

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(centres: np.ndarray, sigma: float = 1.8) -> np.ndarray:
    index = np.indices((21, 21, 21)) - 10
    return np.sum([np.exp(-((index - c.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) / (2 * sigma**2)) for c in centres], 0)


def spun(points: np.ndarray, fold: int) -> np.ndarray:
    """Copies around z."""
    turns = Rotation.from_rotvec([[2 * np.pi * k / fold, 0, 0] for k in range(fold)]).as_matrix()
    return np.concatenate([points @ turn.T for turn in turns])


def test_rotation_angle() -> None:
    some = Rotation.random(6, random_state=0).as_matrix()
    turn = Rotation.from_rotvec([0.0, 0, 25], degrees=True).as_matrix()
    np.testing.assert_allclose(angles_between(some @ turn, some), 25, atol=1e-5)
    np.testing.assert_allclose(angles_between(some, some), 0, atol=1e-5)


def test_symmetries_are_found_in_the_density() -> None:
    unit = np.array([[3.0, 5.5, 0], [-4.0, 4.0, 2.0]])
    fourfold = self_symmetries(blobs(spun(unit, 4)).astype(np.float32))
    expected = Rotation.from_rotvec([[90.0 * k, 0, 0] for k in range(4)], degrees=True).as_matrix()
    assert len(fourfold) == 4
    nearest = angles_between(fourfold[:, None], expected[None])
    assert (nearest.min(axis=0) < 3).all()
    lumps = blobs(np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 2, -6.0]])).astype(np.float32)
    assert len(self_symmetries(lumps)) == 1


def test_errors_are_those_put_in_whatever_the_symmetry_and_the_seed() -> None:
    rng = np.random.default_rng(1)
    true = Rotation.random(30, random_state=rng).as_matrix()
    group = Rotation.from_rotvec([[72.0 * k, 0, 0] for k in range(5)], degrees=True).as_matrix()
    tilt = rng.normal(size=(30, 3))
    tilt *= rng.uniform(0, 12, size=(30, 1)) / np.linalg.norm(tilt, axis=1, keepdims=True)
    wrong = Rotation.from_rotvec(tilt, degrees=True).as_matrix()
    seed = true[0]
    # estimates turn the seed's own box into the particles, each up to a symmetry of the reference
    estimated = wrong @ true @ group[rng.integers(5, size=30)] @ seed.T
    errors = orientation_errors(estimated, true, group, seed.T)
    np.testing.assert_allclose(errors, np.linalg.norm(tilt, axis=1), atol=1e-5)
    assert np.median(orientation_errors(estimated, true, None, seed.T)) > 30
    assert np.median(orientation_errors(estimated, true, group)) > 15


def test_the_direction_is_that_of_turning_a_density() -> None:
    """A particle made from the seed's box by R_est is the reference turned by R_est R_seed."""
    centres = np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 2, -6.0]])
    seed, turn = Rotation.random(2, random_state=3).as_matrix()
    template = centres @ seed.T
    particle = template @ turn.T
    true = Rotation.align_vectors(particle, centres)[0].as_matrix()
    assert orientation_errors(turn[None], true[None], None, seed.T)[0] < 1e-3


LUMPS = np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 2, -6.0]])


def test_a_frame_that_turned_as_a_whole_is_no_error() -> None:
    rng = np.random.default_rng(7)
    true = Rotation.random(12, random_state=rng).as_matrix()
    turned = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    around = np.stack([Rotation.from_euler("x", 120 * k, degrees=True).as_matrix() for k in range(3)])
    noise = Rotation.from_rotvec(np.array([[0, 0, 5.0], [0, 5.0, 0], [5.0, 0, 0]] * 4), degrees=True).as_matrix()
    estimated = noise @ true @ around[rng.integers(3, size=12)] @ turned
    estimated[4] = Rotation.from_euler("y", 60, degrees=True).as_matrix() @ estimated[4]
    assert np.median(orientation_errors(estimated, true, around)) > 20
    common = errors_in_common_frame(estimated, true, around)
    assert common[4] > 45
    assert np.delete(common, 4).max() < 15
    # no pick makes itself right: random ones are as bad as by chance
    anywhere = Rotation.random(40, random_state=rng).as_matrix()
    chance = errors_in_common_frame(anywhere, Rotation.random(40, random_state=rng).as_matrix())
    assert np.median(chance) > 100
    assert np.isnan(errors_in_common_frame(true[:2], true[:2])).all()


def test_chance_is_that_of_random_turns() -> None:
    # the angle of a random rotation has the density (1 - cos) / pi, half of which lies under 132 degrees
    assert chance_level(np.eye(3)[None]) == pytest.approx(132, abs=4)
    half_turns = Rotation.from_rotvec([[0, 0, 0], [180.0, 0, 0]], degrees=True).as_matrix()
    assert chance_level(half_turns) < 110


def pose(rotation: np.ndarray, centre: tuple[float, float, float]) -> Pose:
    return Pose(rotation=rotation, centre_zyx=centre)


def test_every_particle_is_hit_once_and_is_the_one_in_the_tomogram() -> None:
    empty = np.zeros((9, 9, 9 + 2 * MARGIN))
    turns = Rotation.random(4, random_state=0).as_matrix()
    specimen = Specimen(
        density=empty.astype(np.float32),
        labels=empty.astype(np.uint16),
        clutter=empty.astype(bool),
        kinds=np.array([1, 0, 1, 1]),
        centres_zyx=np.array([[4, 4, 2.0], [4, 4, MARGIN + 1], [1, 2, MARGIN + 3], [7, 7, MARGIN + 8]]),
        rotations=turns,
        radii=np.full(4, 2.0),
    )
    inside = particles_inside(specimen, 1)
    np.testing.assert_array_equal([one.centre_zyx for one in inside], [[1, 2, 3], [7, 7, 8]])
    np.testing.assert_array_equal([one.rotation for one in inside], turns[2:])
    hits = match(np.array([[1, 2, 4.0], [1, 2, 3.5], [5, 5, 5]]), inside, 2.0)
    assert hits == [None, inside[0], None]
    assert match(np.zeros((0, 3)), inside, 2.0) == []
    assert match(np.zeros((2, 3)), [], 2.0) == [None, None]


def test_true_poses_average_to_the_truth_in_the_frame_of_the_seed() -> None:
    """Wherever the seed's mask lies, and with turned, shifted particles of two tomograms."""
    density = blobs(LUMPS).astype(np.float32)
    turns = Rotation.random(9, random_state=4).as_matrix()
    seed = pose(turns[0], (1.2, -0.7, 0.4))
    off = np.array(seed.centre_zyx)
    volumes, picks = [], []
    rng = np.random.default_rng(2)
    for tomogram in range(2):
        volume = rng.normal(scale=0.05, size=(40, 40, 170)).astype(np.float32)
        for k in range(4):
            turn = turns[1 + 4 * tomogram + k]
            centre = np.array([20, 20, 21 + 42 * k]) + rng.uniform(-0.5, 0.5, 3)
            corner = np.round(centre).astype(int) - 18
            inside = centre - corner - 18
            box = tuple(slice(c, c + 37) for c in corner)
            volume[box] += density_in_pose(density, pose(turn, (inside[0], inside[1], inside[2])), 37)
            true = pose(turn, (centre[0], centre[1], centre[2]))
            spun = turn @ seed.rotation.T
            fine = centre - spun @ off
            coarse = pose(spun @ Rotation.from_rotvec([0, 0, 1.2]).as_matrix(), (fine[0], fine[1], fine[2]))
            one = Instance(
                mask=np.ones((1, 1, 1), bool),
                origin_zyx=(0, 0, 0),
                prompt_zyx=(0.0, 0.0, 0.0),
                similarity=1.0,
                confidence=1.0,
                score=1.0,
            )
            picks.append(Pick(tomogram, one, coarse, pose(spun, (fine[0], fine[1], fine[2])), true))
        volumes.append(volume)
    truth = density_in_pose(density, seed, 37)
    scores = score_averages(volumes, [Wedge(-90, 90)] * 2, picks, truth, seed, 9.0)
    assert [(one.poses, one.count) for one in scores] == [(p, n) for p in ("coarse", "fine", "true") for n in (4, 8)]
    coarse, fine, true = scores[1::2]
    assert true.correlation > 0.95
    assert fine == AverageScore(**{**vars(true), "poses": "fine"})
    assert fine.against_truth < 60
    assert coarse.correlation < fine.correlation - 0.1
    assert coarse.against_truth > fine.against_truth


def test_a_density_is_turned_like_a_particle() -> None:
    turn = Rotation.random(random_state=7).as_matrix()
    found = density_in_pose(blobs(LUMPS).astype(np.float32), pose(turn, (2.0, 0.0, -1.0)), 29)
    expected = np.pad(blobs(LUMPS @ turn.T + np.array([2.0, 0, -1])), 4)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_the_table_has_a_row_for_every_kind_and_size_of_average() -> None:
    one = AverageScore(
        poses="fine", count=8, true=6, resolution_0143=40, resolution_05=60, against_truth=55, correlation=0.8
    )
    row = KindAlignment(
        repeat=0,
        snr=0.1,
        kind="barrel",
        radius=10,
        symmetries=7,
        chance=60.0,
        coarse=[10, 30],
        common=[4.0, 12.0],
        fine=[4, 16],
        coarse_centre=[2.0, 2.0],
        fine_centre=[1.0, 1.0],
        mask_centre=[1.5, 1.5],
        seed_offset=1.0,
        seconds=0.004,
        averages=[one],
    )
    lines = table([row]).splitlines()
    assert "| barrel | 2 | 7 | 60 | 20, 28, 50% | 10, 15, 100% | 8, 11, 100% | 0.20, 0.10, 0.15 | 4 |" in lines
    assert "| fine | 8 to 15 | 1 | 75% | 40 | 60 | 55 | 0.80 |" in lines
    assert table([]) == "No kind had enough particles."
