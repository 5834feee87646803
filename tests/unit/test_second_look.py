"""The second look at particles of known poses, with a ranking that is told who is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.alignment import Aligner
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.ranker import FIRST, SECOND
from copick_cryosam.rotations import angles_between, spacing_of
from copick_cryosam.second_look import AVERAGED, choose, look_again, look_at_seeds, reference_of
from copick_cryosam.types import Proposals, VoxelPoints
from copick_cryosam.wedge import Wedge

SHAPE = (49, 72, 131)
STRIDE = 4
WEDGE = Wedge(-60, 60)
ROTATIONS = 800
CENTRES = np.array([[24, 20, 20], [24, 50, 24], [23, 22, 60], [26, 48, 66], [24, 21, 106], [25, 50, 107]], dtype=float)
NOISE = np.array([[10, 36, 42], [38, 36, 86], [24, 36, 125]], dtype=float)
"""Points without a particle."""
PARTICLES = len(CENTRES)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rotations() -> np.ndarray:
    return Rotation.random(PARTICLES, random_state=2).as_matrix()


@pytest.fixture(scope="module")
def scene(rotations) -> tuple[np.ndarray, DenseFeatures, float]:
    """A volume with particles, particle(x) = reference(R^T (x - c)), its features, and the particles' radius."""
    shape = random_shape(np.random.default_rng(5), family="globule", radius=8, name="globule")
    rng = np.random.default_rng(1)
    volume = rng.normal(scale=0.5, size=SHAPE).astype(np.float32)
    half = shape.density.shape[0] // 2
    middle = np.full(3, half)
    for centre, rotation in zip(CENTRES.astype(int), rotations, strict=True):
        box = tuple(slice(c - half, c + half + 1) for c in centre)
        volume[box] += ndimage.affine_transform(shape.density, rotation.T, middle - rotation.T @ middle, order=1)
    cells = tuple(-(-n // STRIDE) for n in SHAPE)
    maps = rng.uniform(size=(2, *cells)).astype(np.float32)
    values = torch.from_numpy(rng.normal(size=(6, *cells)).astype(np.float32))
    features = DenseFeatures(
        values=values, grid=CellGrid(cells, (STRIDE,) * 3, SHAPE), centre=maps[0], foreground=maps[1]
    )
    return volume, features, shape.radius


@pytest.fixture(scope="module")
def aligner(scene) -> Aligner:
    return Aligner(scene[2], AlignmentSettings(rotations=ROTATIONS), torch.device("cpu"))


def seeds(aligner, scene, which):
    volume, features, radius = scene
    points = VoxelPoints(CENTRES[which])
    return look_at_seeds(aligner, volume, features, points, np.full(len(points), 0.9), WEDGE, radius)


def boxes(aligner, scene, points):
    return aligner.look(torch.from_numpy(scene[0]), VoxelPoints(points), WEDGE)


def proposals(points) -> Proposals:
    score = np.linspace(0.8, 0.2, len(points))
    return Proposals(points=VoxelPoints(points), similarity=score, score=score)


def look(aligner, scene, points, sure, reference):
    volume, features, radius = scene
    asked = []

    def rank(evidence: np.ndarray) -> np.ndarray:
        asked.append(evidence)
        return np.asarray(sure, dtype=np.float64)

    found = look_again(
        aligner, volume, features, WEDGE, proposals(points), reference, radius, rank, np.arange(len(points))
    )
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], found.first)
    assert found.first.shape == (len(points), FIRST)
    assert found.second.shape == (len(points), SECOND)
    assert np.isfinite(found.second).all()
    assert len(found.aligned) == len(points)
    return found


def among_all(aligner, scene, points, members, reference) -> np.ndarray:
    """Correlation with the average of the seeds and all members, each of them with itself in it."""
    cut = boxes(aligner, scene, points)
    posed = aligner.align(reference.template, cut)
    added = [(cut, int(i), posed.rotations[i], posed.shifts[i]) for i in members]
    return aligner.align(aligner.averaged([*reference.members(), *added]), cut).score


def test_who_is_surely_a_particle_is_averaged_and_compared_with_the_others(aligner, scene):
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    points = np.vstack([CENTRES[1:], NOISE])
    sure = [0.6, 0.9, 0.5, 0.49, 0.7, 0.1, 0.3, 0.2]
    found = look(aligner, scene, points, sure, reference)
    # surest first; a half is enough
    assert found.members.tolist() == [1, 4, 0, 2]
    np.testing.assert_allclose(np.exp(found.second[:, FIRST + 5]), 5)
    with_itself, compared = among_all(aligner, scene, points, found.members, reference), found.second[:, FIRST]
    others = np.setdiff1d(np.arange(len(points)), found.members)
    assert (compared[found.members] < with_itself[found.members] - 0.02).all()
    np.testing.assert_allclose(compared[others], with_itself[others], atol=1e-5)
    # the average tells all particles, in it or not, from noise
    assert compared[:5].min() > compared[5:].max() + 0.05


def test_noise_in_the_average_is_seen_through(aligner, scene):
    """A point without a particle resembles an average that holds it; its score is that with the others."""
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    points = np.vstack([CENTRES[1:3], NOISE[:1]])
    found = look(aligner, scene, points, [0, 0, 1], reference)
    assert found.members.tolist() == [2]
    # the seed alone is all that is left to compare with
    alone = aligner.align(reference.template, boxes(aligner, scene, NOISE[:1])).score[0]
    assert found.second[2, FIRST] <= alone + 0.02
    assert among_all(aligner, scene, points, found.members, reference)[2] > found.second[2, FIRST] + 0.15
    assert found.second[2, FIRST] < found.second[:2, FIRST].min()


def test_no_more_than_ten_are_averaged(aligner, scene):
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    points = np.vstack([CENTRES, CENTRES + np.array([0, 0.5, 0]), NOISE])
    found = look(aligner, scene, points, np.linspace(0.6, 0.99, len(points)), reference)
    assert found.members.tolist() == list(range(len(points) - 1, len(points) - 1 - AVERAGED, -1))


def test_nobody_sure_leaves_the_seeds(aligner, scene):
    reference = reference_of(aligner, [seeds(aligner, scene, [0, 1])])
    points = np.vstack([CENTRES[2:4], NOISE[:1]])
    found = look(aligner, scene, points, [0.49, 0, 0], reference)
    plain = aligner.align(reference.template, boxes(aligner, scene, points))
    assert len(found.members) == 0
    np.testing.assert_array_equal(found.aligned.score, plain.score)
    np.testing.assert_array_equal(found.second[:, FIRST], plain.score)
    np.testing.assert_allclose(np.exp(found.second[:, FIRST + 5]), 2)


@pytest.mark.parametrize("sure", [0.2, 0.8])
def test_one_candidate_is_enough(aligner, scene, sure):
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    found = look(aligner, scene, CENTRES[2:3], [sure], reference)
    assert len(found.members) == int(sure >= 0.5)


def test_one_seed_is_the_frame(aligner, scene):
    reference = reference_of(aligner, [seeds(aligner, scene, [3])])
    ((rotation, shift),) = reference.poses
    np.testing.assert_array_equal(rotation, np.eye(3))
    np.testing.assert_array_equal(shift, np.zeros(3))
    assert len(reference.members()) == 1


def test_seeds_of_several_tomograms_are_brought_into_one_frame(aligner, scene, rotations):
    looks = [seeds(aligner, scene, [0, 1]), seeds(aligner, scene, [2]), seeds(aligner, scene, [3, 4])]
    reference = reference_of(aligner, looks)
    turned = np.stack([rotation for rotation, _ in reference.poses])
    expected = rotations[:5] @ rotations[0].T
    wrong = angles_between(turned, expected)
    np.testing.assert_allclose(turned[0], np.eye(3), atol=1e-5)
    # two poses from the grid make each of these
    assert wrong.max() < 1.5 * spacing_of(ROTATIONS)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-5)
    members = reference.members()
    assert [index for _, index, *_ in members] == [0, 1, 0, 0, 1]
    assert [some is looks[k].boxes for (some, *_), k in zip(members, [0, 0, 1, 2, 2], strict=True)] == [True] * 5
    # their average is more like the particle that is not in it than one seed is
    left = boxes(aligner, scene, CENTRES[5:])
    alone = aligner.template(looks[0].boxes, 0)
    assert aligner.align(reference.template, left).score[0] > aligner.align(alone, left).score[0]


def test_candidates_are_turned_relative_to_the_first_seed(aligner, scene, rotations):
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    found = look(aligner, scene, CENTRES[1:], np.ones(5), reference)
    wrong = angles_between(found.aligned.rotations, rotations[1:] @ rotations[0].T)
    assert np.median(wrong) < spacing_of(ROTATIONS)
    # the particle itself is where it was proposed
    assert np.abs(found.aligned.shifts).max() <= aligner.pixel * (1 + 1e-6)


def test_a_second_look_gives_the_same_twice(aligner, scene):
    reference = reference_of(aligner, [seeds(aligner, scene, [0])])
    one, other = (look(aligner, scene, CENTRES[1:4], [1, 0, 1], reference) for _ in range(2))
    np.testing.assert_array_equal(one.second, other.second)
    np.testing.assert_array_equal(one.aligned.rotations, other.aligned.rotations)


@pytest.mark.parametrize(
    ("proposals_", "voxels", "radius", "looked", "meant"),
    [(40, 1e6, 8.0, 40, 40), (900, 2.6e6, 7.0, 227, 227), (9000, 7.3e7, 9.0, 600, 3004), (700, 7.3e7, 9.0, 600, 700)],
)
def test_a_large_tomogram_gives_a_ranking_the_company_that_it_knows(proposals_, voxels, radius, looked, meant):
    chosen, context = choose(proposals_, int(voxels), radius, 600)
    assert len(chosen) == looked
    assert (np.diff(chosen) > 0).all()
    assert chosen[-1] < proposals_
    assert len(context) == pytest.approx(meant, abs=80)
    assert set(context) == set(range(looked))
    np.testing.assert_array_equal(chosen[: looked * 3 // 4], np.arange(looked * 3 // 4))
