"""Evidence of candidates: its columns, and what is looked at around a point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from copick_cryosam.evidence import Surfaces, _company, first_evidence, second_evidence, surfaces
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.neighbourhood import discriminant, neighbourhood
from copick_cryosam.ranker import FIRST, SECOND
from copick_cryosam.spheres import REGIONS
from copick_cryosam.types import Proposals, VoxelPoints

SHAPE = (33, 40, 47)
STRIDE = 4
CHANNELS = 5
pytestmark = pytest.mark.usefixtures("one_thread")


def some_surfaces(count: int, rng: np.random.Generator) -> Surfaces:
    features = rng.normal(size=(count, len(REGIONS), CHANNELS)).astype(np.float32)
    return Surfaces(
        features=features / np.linalg.norm(features, axis=2, keepdims=True),
        foreground=rng.uniform(size=(count, len(REGIONS))),
        density=rng.normal(size=(count, len(REGIONS))),
        centre=rng.uniform(size=count),
    )


def taken(found: Surfaces, which: np.ndarray) -> Surfaces:
    return Surfaces(
        features=found.features[which],
        foreground=found.foreground[which],
        density=found.density[which],
        centre=found.centre[which],
    )


def some_candidates(count: int, seed: int = 0) -> tuple[Proposals, Surfaces, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = np.sort(rng.uniform(-0.2, 0.95, size=count))[::-1]
    proposals = Proposals(points=VoxelPoints(rng.uniform(0, 30, (count, 3))), similarity=score + 0.01, score=score)
    return proposals, some_surfaces(count, rng), rng.uniform(-1, 1, count)


def every(values: np.ndarray) -> np.ndarray:
    """All candidates as each other's company."""
    return np.arange(len(values))


def evidence(proposals: Proposals, found: Surfaces, correlation: np.ndarray, seeds: int = 2) -> np.ndarray:
    at_seeds = some_surfaces(seeds, np.random.default_rng(9))
    return first_evidence(proposals, found, at_seeds, np.full(seeds, 0.9), correlation, 7.0, every(correlation))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 40])
def test_columns_are_those_of_the_ranking_and_do_not_depend_on_the_order(count):
    proposals, found, correlation = some_candidates(count)
    first = evidence(proposals, found, correlation)
    sure = np.random.default_rng(2).uniform(size=count)
    at_seeds = some_surfaces(2, np.random.default_rng(9))
    seed = at_seeds.mean().parts[0]
    second = second_evidence(first, correlation + 0.1, found.parts, seed, sure, 4, every(sure))
    assert first.shape == (count, FIRST)
    assert second.shape == (count, SECOND)
    assert np.isfinite(second).all()
    order = np.random.default_rng(1).permutation(count)
    mixed = evidence(proposals[order], taken(found, order), correlation[order])
    np.testing.assert_allclose(mixed, first[order], atol=1e-6)
    again = second_evidence(mixed, correlation[order] + 0.1, found.parts[order], seed, sure[order], 4, every(sure))
    np.testing.assert_allclose(again, second[order], atol=1e-6)


def test_sizes_and_numbers_are_the_last_columns():
    first = evidence(*some_candidates(12), seeds=3)
    np.testing.assert_allclose(first[:, -3:], np.broadcast_to(np.log([7.0, 12, 3]), (12, 3)))
    parts = some_surfaces(12, np.random.default_rng(6)).parts
    sure = np.linspace(1, 0, 12)
    second = second_evidence(first, np.linspace(0, 1, 12), parts, parts[0], sure, 5, np.arange(12))
    np.testing.assert_array_equal(second[:, :FIRST], first)
    np.testing.assert_allclose(second[:, FIRST], np.linspace(0, 1, 12))
    np.testing.assert_allclose(second[:, FIRST + 5], math.log(5))
    np.testing.assert_allclose(second[:, FIRST + 6], discriminant(parts, parts[0], sure, np.arange(12)))
    np.testing.assert_allclose(second[:, FIRST + 10 : FIRST + 14], neighbourhood(parts, parts[0], sure, np.arange(12)))
    # how many the first comparison takes for particles: their share, their number; and what it says of each
    shares = np.broadcast_to(np.log([0.501, 6.1]), (12, 2))
    np.testing.assert_allclose(second[:, FIRST + 14 : FIRST + 16], shares)
    told = sure[1:-1]
    np.testing.assert_allclose(second[1:-1, FIRST + 16], np.log(told / (1 - told)))
    assert np.isfinite(second).all()


def test_candidates_that_count_more_often_count_so_in_the_number_of_particles():
    first = evidence(*some_candidates(3))
    parts = some_surfaces(3, np.random.default_rng(6)).parts
    context = np.array([0, 1, 2, 2, 2])
    second = second_evidence(first, np.zeros(3), parts, parts[0], np.array([0.9, 0.5, 0.2]), 1, context)
    shares = np.broadcast_to(np.log([0.4 + 1e-3, 2.0 + 0.1]), (3, 2))
    np.testing.assert_allclose(second[:, FIRST + 14 : FIRST + 16], shares)


def test_one_candidate_has_nothing_to_be_compared_with():
    proposals, found, correlation = some_candidates(1)
    np.testing.assert_array_equal(_company(found, proposals.score), np.zeros((1, 2)))
    assert np.abs(evidence(proposals, found, correlation)[0, 1:4]).max() == 0


def test_extreme_scores_stay_finite():
    proposals, found, _ = some_candidates(4)
    edge = np.array([1.0, 0.0, -1.0, -7.0])
    extreme = Proposals(points=proposals.points, similarity=edge, score=edge)
    nowhere = Surfaces(
        features=np.zeros_like(found.features), foreground=found.foreground, density=found.density, centre=np.zeros(4)
    )
    assert np.isfinite(evidence(extreme, nowhere, edge)).all()


def facing(directions: list[int]) -> Surfaces:
    """Candidates whose features point along one axis each."""
    count = len(directions)
    features = np.zeros((count, len(REGIONS), 16), dtype=np.float32)
    features[np.arange(count), :, directions] = 1
    flat = np.zeros((count, len(REGIONS)))
    return Surfaces(features=features, foreground=flat, density=flat, centre=np.zeros(count))


@pytest.mark.parametrize("count", [2, 5, 6, 7, 12])
def test_a_candidate_is_no_company_of_its_own(count):
    scores = np.linspace(0.9, 0.1, count)
    np.testing.assert_array_equal(_company(facing(list(range(count))), scores), np.zeros((count, 2)))
    np.testing.assert_allclose(_company(facing([3] * count), scores), np.ones((count, 2)))


def test_company_is_the_five_best_others():
    # candidates 6 and 7 look like the sixth and the first of the best; the best itself like candidate 7
    scores = np.linspace(0.9, 0.2, 8)
    company = _company(facing([0, 1, 2, 3, 4, 5, 5, 0]), scores)[:, 0]
    np.testing.assert_allclose(company, [0, 0, 0, 0, 0, 0, 0, 1 / 5], atol=1e-6)


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, DenseFeatures]:
    rng = np.random.default_rng(3)
    volume = rng.normal(size=SHAPE).astype(np.float32)
    cells = tuple(-(-n // STRIDE) for n in SHAPE)
    values = torch.from_numpy(rng.normal(size=(CHANNELS, *cells)).astype(np.float32)).half()
    grid = CellGrid(cells, (STRIDE,) * 3, SHAPE)
    centre, foreground = rng.uniform(size=(2, *cells)).astype(np.float32)
    return volume, DenseFeatures(values=values, grid=grid, centre=centre, foreground=foreground)


def test_surfaces_have_one_row_a_point_and_one_column_a_sphere(scene):
    found = surfaces(*scene, VoxelPoints([[0, 0, 0], [16, 20, 23], [32, 39, 46]]), 6.0)
    assert found.features.shape == (3, len(REGIONS), CHANNELS)
    assert found.foreground.shape == found.density.shape == (3, len(REGIONS))
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=2), 1, atol=1e-5)
    assert all(np.isfinite(each).all() for each in vars(found).values())
    mean = found.mean()
    np.testing.assert_allclose(mean.density, found.density.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(np.linalg.norm(mean.features, axis=2), 1, atol=1e-5)
    assert len(surfaces(*scene, VoxelPoints(np.zeros((0, 3))), 6.0).centre) == 0


def test_spheres_lie_at_their_radii_around_the_point():
    index = np.indices((41, 43, 45)) - np.array([20, 21, 22])[:, None, None, None]
    distance = np.linalg.norm(index, axis=0).astype(np.float32)
    cells = torch.from_numpy(distance)[None]
    features = DenseFeatures(values=cells, grid=CellGrid((41, 43, 45), (1, 1, 1)), centre=distance, foreground=distance)
    found = surfaces(distance, features, VoxelPoints([[20, 21, 22]]), 10.0)
    np.testing.assert_allclose(found.density[0], 10 * np.array(REGIONS), atol=0.3)
    np.testing.assert_allclose(found.foreground, found.density, atol=1e-6)
    assert found.centre[0] == 0


def test_what_lies_outside_is_the_nearest_edge(scene):
    volume, features = scene
    far = surfaces(volume, features, VoxelPoints([[-99, -99, -99], [99, 99, 99]]), 6.0)
    for row, corner in enumerate((0, -1)):
        np.testing.assert_allclose(far.density[row], volume[corner, corner, corner], rtol=1e-5)
        np.testing.assert_allclose(far.foreground[row], features.foreground[corner, corner, corner], rtol=1e-5)
        assert far.centre[row] == features.centre[corner, corner, corner]
        there = features.values[:, corner, corner, corner].float().numpy()
        np.testing.assert_allclose(far.features[row], np.tile(there / np.linalg.norm(there), (4, 1)), atol=1e-3)


def test_features_without_foreground_are_refused(scene):
    volume, features = scene
    plain = DenseFeatures(values=features.values, grid=features.grid, centre=features.centre)
    with pytest.raises(ValueError, match="foreground and centre maps, found none"):
        surfaces(volume, plain, VoxelPoints([[1, 1, 1]]), 6.0)


def test_who_is_drawn_for_many_counts_as_many():
    """Candidates that stand for others give the columns that all of them together would give."""
    proposals, found, correlation = some_candidates(20)
    twice = np.concatenate([np.arange(20), np.arange(10, 20)])
    doubled = Proposals(
        points=VoxelPoints(proposals.points.zyx[twice]),
        similarity=proposals.similarity[twice],
        score=proposals.score[twice],
    )
    counted = first_evidence(
        proposals, found, some_surfaces(2, np.random.default_rng(9)), np.full(2, 0.9), correlation, 7.0, twice
    )
    written_out = evidence(doubled, taken(found, twice), correlation[twice])
    among = [*range(3), *range(29, 32)]
    np.testing.assert_allclose(counted[:, among], written_out[:20, among])
