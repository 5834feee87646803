"""Proposals: maxima of the similarity, suppression, the hierarchy, negatives and regions of interest."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam import matching
from copick_cryosam.config import MatchingSettings
from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.matching import (
    NEGATIVES,
    WHITENING_SHRINKAGE,
    Query,
    hierarchical_map,
    local_maxima,
    merge_queries,
    propose,
    similarity_map,
    suppress,
    whiten_dense,
)
from copick_cryosam.types import Proposals, VoxelPoints

HIERARCHY = MatchingSettings(strategy="hierarchical", ratios=(16, 8, 4), similarity_threshold=0.5)
NO_NEGATIVES = np.zeros((0, 3), dtype=np.float32)
OBJECT = np.array([1, 0, 0], dtype=np.float32)
OTHER = np.array([0, 1, 0], dtype=np.float32)
QUERY = Query(positives=OBJECT[None], negatives=NO_NEGATIVES)


def proposals(points, scores) -> Proposals:
    scores = np.asarray(scores, dtype=float)
    return Proposals(points=VoxelPoints(np.asarray(points, dtype=float)), similarity=scores, score=scores)


def planted(extent, centres, kinds=None, radius=6.0, stride=2.0, noise=0.05, centre_known=False) -> DenseFeatures:
    """Features in which balls of voxels have the feature of their kind and the rest has a third one."""
    shape = tuple(int(np.ceil(n / stride)) for n in extent)
    grid = CellGrid(shape, (stride,) * 3, tuple(extent))
    values = np.zeros((3, *shape))
    values[2] = 1
    where = grid.to_voxels(np.argwhere(np.ones(shape, bool))).zyx
    heat = np.zeros(shape)
    for centre, kind in zip(centres, kinds or [OBJECT] * len(centres), strict=True):
        distance = np.linalg.norm(where - centre, axis=1).reshape(shape)
        inside = np.clip(radius + 1 - distance, 0, 1)
        values = values * (1 - inside) + kind[:, None, None, None] * inside
        heat = np.maximum(heat, np.exp(-(distance**2) / (2 * (0.35 * radius) ** 2)))
    values += noise * np.random.default_rng(3).standard_normal(values.shape)
    return DenseFeatures(
        values=torch.from_numpy(values.astype(np.float32)),
        grid=grid,
        centre=heat.astype(np.float32) if centre_known else None,
    )


# --- whitening --------------------------------------------------------------------------------


def crowding() -> DenseFeatures:
    """Features that share a large mean and a loud direction."""
    plain = planted((48, 48, 48), [(12, 12, 12), (36, 36, 36)], [OBJECT, OTHER])
    loud = np.random.default_rng(4).standard_normal((1, *plain.grid.shape))
    values = plain.values + 5 + torch.from_numpy(loud * np.ones((3, 1, 1, 1)))
    return DenseFeatures(values=values.float(), grid=plain.grid)


@pytest.mark.parametrize("at_once", [1 << 24, 24 * 24 * 3 * 5])
def test_whitening_is_by_the_inverse_root_of_the_shrunk_covariance(at_once, monkeypatch):
    monkeypatch.setattr("copick_cryosam.matching._WHITENED_AT_ONCE", at_once)
    features = crowding()
    flat = features.values.reshape(3, -1).double().numpy()
    covariance = np.cov(flat, bias=True)
    shrunk = (1 - WHITENING_SHRINKAGE) * covariance + WHITENING_SHRINKAGE * np.trace(covariance) / 3 * np.eye(3)
    whiten_dense(features, MatchingSettings(whitening="full"))
    whitened = features.values.reshape(3, -1).double().numpy()
    np.testing.assert_allclose(whitened.mean(axis=1), 0, atol=1e-4)
    # R (flat - mean) with R symmetric and R² the inverse of the shrunk covariance
    root = whitened @ np.linalg.pinv(flat - flat.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(root, root.T, atol=1e-3)
    np.testing.assert_allclose(root @ shrunk @ root, np.eye(3), atol=1e-3)


def test_a_constant_tomogram_is_whitened_to_nothing():
    values = torch.full((3, 4, 4, 4), 0.7, dtype=torch.float16)
    features = DenseFeatures(values=values, grid=CellGrid((4, 4, 4), (2, 2, 2)))
    whiten_dense(features, MatchingSettings(whitening="full"))
    assert features.values.isfinite().all()
    assert features.values.abs().max() < 1e-2


def test_whitening_can_take_the_mean_alone_or_nothing():
    plain, centred, kept = crowding(), crowding(), crowding()
    whiten_dense(centred, MatchingSettings(whitening="mean"))
    whiten_dense(kept, MatchingSettings(whitening="none"))
    mean = plain.values.reshape(3, -1).mean(1)[:, None, None, None]
    np.testing.assert_allclose(centred.values, plain.values - mean, atol=1e-4)
    np.testing.assert_array_equal(kept.values, plain.values)


def test_whitening_parts_objects_that_crowd_together():
    gaps = []
    for how in ("none", "full"):
        features = crowding()
        whiten_dense(features, MatchingSettings(whitening=how))
        found = similarity_map(
            features, Query(positives=features.values[:, 6, 6, 6][None].numpy(), negatives=NO_NEGATIVES)
        )
        gaps.append(found[5:8, 5:8, 5:8].mean() - found[17:20, 17:20, 17:20].mean())
    assert gaps[1] > gaps[0] + 0.3


def test_features_that_are_not_dense_are_left_to_their_encoder():
    class Tokens:
        pass

    whiten_dense(Tokens(), MatchingSettings(whitening="full"))  # type: ignore[arg-type]


# --- queries ----------------------------------------------------------------------------------


def test_queries_of_several_tomograms_weigh_by_their_voxels():
    query = merge_queries([(OBJECT, 30), (OTHER, 10)], [OTHER])
    np.testing.assert_allclose(query.positives[0], [0.75, 0.25, 0])
    np.testing.assert_array_equal(query.negatives, OTHER[None])
    assert merge_queries([(OBJECT, 1)], []).negatives.shape == (0, 3)
    with pytest.raises(ValueError, match="at least one seed"):
        merge_queries([], [])


def test_negatives_lower_what_resembles_them_and_nothing_else():
    features = planted((48, 48, 48), [(12, 12, 12), (36, 36, 36)], [OBJECT, OBJECT + 0.9 * OTHER], noise=0)
    plain = similarity_map(features, QUERY)
    with_negative = similarity_map(features, Query(positives=OBJECT[None], negatives=OTHER[None]))
    assert plain[18, 18, 18] > 0.7
    assert with_negative[18, 18, 18] < 0.2
    assert with_negative[6, 6, 6] == pytest.approx(plain[6, 6, 6], abs=1e-5)
    assert (with_negative <= plain + 1e-6).all()
    assert len(propose(features, QUERY, 6, MatchingSettings())) == 2
    best = propose(features, Query(positives=OBJECT[None], negatives=OTHER[None]), 6, MatchingSettings())
    assert np.linalg.norm(best.points.zyx[0] - 12) < 2
    assert best.score[0] > 2 * best.score[1:].max(initial=0)


@pytest.mark.parametrize("prototypes", [OBJECT[None], np.stack([-OTHER, 3 * OBJECT])])
def test_a_negative_that_looks_like_the_object_costs_the_object_nothing(prototypes):
    alike = OBJECT + 0.5 * OTHER
    expected = 1 / np.sqrt(1.25)  # their cosine
    features = planted((48, 48, 48), [(12, 12, 12), (36, 36, 36)], [OBJECT, alike], noise=0)
    negatives = np.stack([2 * alike, alike])
    contrasted = similarity_map(features, Query(positives=prototypes, negatives=negatives))
    assert contrasted[6, 6, 6] == pytest.approx(1, abs=1e-5)
    assert contrasted[18, 18, 18] == pytest.approx(expected - (1 - expected), abs=1e-5)


def test_a_negative_that_the_object_is_the_opposite_of_costs_the_object_nothing():
    features = planted((32, 32, 32), [(16, 16, 16)], [OBJECT], noise=0)
    opposite = Query(positives=OBJECT[None], negatives=-OBJECT[None])
    # nor the background, which is neither
    np.testing.assert_allclose(similarity_map(features, opposite), similarity_map(features, QUERY), atol=1e-6)


def test_the_same_negative_from_many_tomograms_counts_once():
    features = planted((32, 32, 32), [(16, 16, 16)], [OBJECT + 0.5 * OTHER], noise=0)
    once, often = (
        similarity_map(features, Query(positives=OBJECT[None], negatives=np.stack([OTHER] * n))) for n in (1, 5)
    )
    np.testing.assert_allclose(once, often, atol=1e-6)


TWO = [(OBJECT, 30), (0.9 * OBJECT + 0.1 * OTHER, 10), (2 * OTHER, 5), (OTHER + 0.2 * OBJECT, 15)]


def test_seeds_that_disagree_become_prototypes_weighted_by_their_voxels():
    query = merge_queries(TWO, [], MatchingSettings(prototypes=4))
    np.testing.assert_allclose(sorted(query.positives.tolist()), [[0.15, 1.25, 0], [0.975, 0.025, 0]], atol=1e-6)
    assert query.positives.dtype == np.float32
    # the same seeds in another order, or as a part of their features' lengths, are the same groups
    turned = merge_queries(TWO[::-1], [], MatchingSettings(prototypes=2))
    np.testing.assert_allclose(sorted(turned.positives.tolist()), sorted(query.positives.tolist()), atol=1e-6)


def test_one_prototype_is_the_mean_of_all_seeds():
    mean = np.average([vector for vector, _ in TWO], axis=0, weights=[count for _, count in TWO])
    for settings in (None, MatchingSettings(), MatchingSettings(prototypes=1)):
        np.testing.assert_allclose(merge_queries(TWO, [], settings).positives, mean[None], atol=1e-6)


def test_seeds_that_agree_stay_one_prototype():
    alike = [(OBJECT, 1), (OBJECT + 0.2 * OTHER, 1), (OBJECT - 0.2 * OTHER, 1)]
    assert len(merge_queries(alike, [], MatchingSettings(prototypes=3)).positives) == 1
    strict = MatchingSettings(prototypes=3, prototype_similarity=0.99)
    assert len(merge_queries(alike, [], strict).positives) == 3
    assert len(merge_queries(alike, [], strict.model_copy(update={"prototypes": 2})).positives) == 2
    assert len(merge_queries([(OBJECT, 1)] * 5, [], strict).positives) == 1


def test_negatives_stand_alone_until_they_are_too_many():
    vectors = np.random.default_rng(0).standard_normal((NEGATIVES, 3)).astype(np.float32)
    few = merge_queries([(OBJECT, 1)], list(vectors))
    np.testing.assert_allclose(sorted(few.negatives.tolist()), sorted(vectors.tolist()), rtol=1e-6)
    nearly = vectors + 1e-3 * np.random.default_rng(1).standard_normal(vectors.shape).astype(np.float32)
    many = merge_queries([(OBJECT, 1)], [*vectors, *nearly])
    np.testing.assert_allclose(sorted(many.negatives.tolist()), sorted(((vectors + nearly) / 2).tolist()), rtol=1e-4)


@pytest.mark.parametrize("settings", [MatchingSettings(), HIERARCHY], ids=["exhaustive", "hierarchical"])
def test_resembling_one_prototype_is_enough(settings):
    centres = [(20, 20, 20), (44, 44, 44)]
    features = planted((64, 64, 64), centres, [OBJECT, OTHER], radius=14)
    both = Query(positives=np.stack([OBJECT, OTHER]), negatives=NO_NEGATIVES)
    found = propose(features, both, 14.0, settings)
    for centre in centres:
        assert np.abs(found.points.zyx[:2] - centre).max(axis=1).min() <= 4
    assert found.similarity[:2].min() > 0.7
    alone = propose(features, QUERY, 14.0, settings)
    assert len(alone) == 1 or alone.similarity[1] < 0.5


# --- proposals --------------------------------------------------------------------------------

CENTRES = [(20, 20, 20), (5, 30, 52), (40, 6, 35), (44, 50, 7)]


@pytest.mark.parametrize("centre_known", [False, True])
@pytest.mark.parametrize("extent", [(49, 57, 59), (48, 56, 60)])
def test_balls_are_proposed_at_their_middle(extent, centre_known):
    found = propose(planted(extent, CENTRES, centre_known=centre_known), QUERY, 6.0, MatchingSettings())
    assert (np.diff(found.score) <= 0).all()
    best = found.points.zyx[: len(CENTRES)]
    for centre in CENTRES:
        # a ball that is cut by the edge is found within half its radius
        cut = any(c < 6 or c > n - 7 for c, n in zip(centre, extent, strict=True))
        assert np.linalg.norm(best - centre, axis=1).min() <= (3 if cut else 1.5)
    assert found.score[len(CENTRES) :].max(initial=0) < 0.6 * found.score[len(CENTRES) - 1]
    assert (np.abs(found.similarity) <= 1 + 1e-6).all()


@pytest.mark.parametrize("extent", [(17, 17, 17), (33, 19, 21)])
@pytest.mark.parametrize("strategy", ["exhaustive", "hierarchical"])
def test_a_particle_in_the_last_incomplete_cells_stays_in_the_tomogram(extent, strategy):
    settings = MatchingSettings(strategy=strategy, ratios=(4, 2))
    found = propose(planted(extent, [tuple(n - 1 for n in extent)], radius=4), QUERY, 4.0, settings)
    assert len(found)
    assert (found.points.zyx >= 0).all()
    assert (found.points.zyx <= np.array(extent) - 1).all()
    assert np.linalg.norm(found.points.zyx[0] - (np.array(extent) - 1)) <= 3


def test_proposals_lie_on_cell_centres_of_fractional_strides():
    features = planted((50, 40, 45), [(25, 20, 22)], stride=2.5)
    (z, y, x), *_ = propose(features, QUERY, 6.0, MatchingSettings()).points.zyx
    for value, centre in ((z, 25), (y, 20), (x, 22)):
        assert ((value + 0.5) / 2.5 - 0.5) % 1 == pytest.approx(0)
        assert abs(value - centre) <= 1.5


def test_none_is_nearer_than_the_suppression_radius_to_a_better_one():
    features = planted((40, 40, 40), [], noise=1.0)
    found = propose(features, QUERY, 6.0, MatchingSettings(nms_radius=1.5, smoothing=0.1))
    assert len(found) > 5
    gaps = np.linalg.norm(found.points.zyx[:, None] - found.points.zyx, axis=2)
    assert gaps[~np.eye(len(found), dtype=bool)].min() >= 9


def test_only_points_in_the_region_of_interest():
    features = planted((49, 57, 59), CENTRES)
    roi = np.zeros((49, 57, 59), bool)
    roi[:, :, 40:] = True
    found = propose(features, QUERY, 6.0, MatchingSettings(), roi)
    assert (found.points.zyx[:, 2] >= 39.5).all()
    assert np.linalg.norm(found.points.zyx[0] - CENTRES[1]) <= 1.5
    assert len(propose(features, QUERY, 6.0, MatchingSettings(), np.zeros_like(roi))) == 0
    with pytest.raises(InputError, match=r"expected the tomogram's shape \(49, 57, 59\), found \(49, 57, 58\)"):
        propose(features, QUERY, 6.0, MatchingSettings(), roi[:, :, 1:])


def test_a_region_of_interest_is_searched_even_if_better_maxima_outside_abound(monkeypatch):
    monkeypatch.setattr("copick_cryosam.matching._CANDIDATES", 3)
    roi = np.zeros((49, 57, 59), bool)
    features = planted((49, 57, 59), CENTRES, [OBJECT, OBJECT, OBJECT, 0.8 * OBJECT + 0.6 * OTHER])
    roi[:, 45:, :15] = True
    found = propose(features, QUERY, 6.0, MatchingSettings(), roi)
    assert np.linalg.norm(found.points.zyx[0] - CENTRES[3]) < 2  # one cell


def test_a_map_without_any_peak_gives_no_proposals():
    constant = DenseFeatures(values=torch.ones(3, 8, 8, 8), grid=CellGrid((8, 8, 8), (2, 2, 2), (16, 16, 16)))
    assert len(propose(constant, QUERY, 4.0, MatchingSettings())) == 0
    nothing = planted((48, 48, 48), [(24, 24, 24)], [OTHER], noise=0)
    assert len(propose(nothing, QUERY, 6.0, HIERARCHY)) == 0
    assert len(suppress(proposals(np.zeros((0, 3)), []), 3.0)) == 0


# --- the hierarchy ----------------------------------------------------------------------------


def test_the_hierarchy_agrees_with_the_exhaustive_map_where_it_looked():
    features = planted((70, 66, 64), [(20, 20, 20), (50, 44, 40)], radius=14)
    found, grid = hierarchical_map(features, QUERY, HIERARCHY)
    assert grid == features.grid.coarser(2)
    keep = np.ones((1, 1, 1), bool)
    levels = [features.pooled(factor) for factor in (8, 4, 2)]
    for level in levels:
        full = level.similarity(QUERY.positives[0])
        # a cell is looked at where the coarser cell it lies in was kept
        shape = level.grid.shape
        repeats = keep if keep.size == 1 else np.repeat(np.repeat(np.repeat(keep, 2, 0), 2, 1), 2, 2)
        looked = np.broadcast_to(repeats, shape) if keep.size == 1 else repeats[: shape[0], : shape[1], : shape[2]]
        keep = looked & (full >= 0.5)
    np.testing.assert_array_equal(found > -1, keep)
    np.testing.assert_allclose(found[keep], full[keep], atol=1e-6)
    assert 0 < keep.sum() < (full >= 0.5).sum() + 1
    assert (found[keep] >= 0.5).all()


def test_the_hierarchy_proposes_what_passes_at_every_level():
    centres = [(20, 20, 20), (50, 44, 40)]
    found = propose(planted((70, 66, 64), centres, radius=14), QUERY, 14.0, HIERARCHY)
    assert len(found) == 2
    for centre in centres:
        # within the cell of 4 voxels beside the true one
        assert np.abs(found.points.zyx - centre).max(axis=1).min() <= 4
    # what was rejected beside a particle must not be averaged into its similarity
    assert (found.similarity > 0.7).all()
    # at ratio 16 a particle of two voxels is drowned by its surroundings
    assert len(propose(planted((70, 66, 64), centres, radius=1), QUERY, 2.0, HIERARCHY)) == 0


def test_negatives_count_in_the_hierarchy():
    features = planted((64, 64, 64), [(20, 20, 20), (46, 46, 46)], [OBJECT, OBJECT + 0.7 * OTHER], radius=14)
    assert len(propose(features, QUERY, 14.0, HIERARCHY)) == 2
    found = propose(features, Query(positives=OBJECT[None], negatives=np.stack([OTHER, -OBJECT])), 14.0, HIERARCHY)
    assert len(found) == 1
    assert np.abs(found.points.zyx[0] - 20).max() <= 4


# --- maxima and suppression -------------------------------------------------------------------


def test_maxima_at_corners_and_between():
    values = np.zeros((7, 8, 9), np.float32)
    for cell, height in (((0, 0, 0), 1.0), ((6, 7, 8), 2.0), ((3, 4, 4), 0.5), ((3, 4, 5), 0.4)):
        values[cell] = height
    assert local_maxima(values, [1, 1, 1]).tolist() == [[0, 0, 0], [3, 4, 4], [6, 7, 8]]
    # within a reach of 5 cells only the highest is one
    assert local_maxima(values, [9, 9, 9]).tolist() == [[6, 7, 8]]


def test_constant_maps_hold_no_maximum_and_flat_tops_have_one_after_suppression():
    assert local_maxima(np.full((5, 5, 5), 0.3, np.float32), [1, 1, 1]).shape == (0, 3)
    flat = np.zeros((9, 9, 9), np.float32)
    flat[3:5, 3:5, 3:5] = 1
    tops = local_maxima(flat, [2, 2, 2])
    assert set(map(tuple, tops.tolist())) == set(map(tuple, (np.argwhere(flat == 1)).tolist()))
    assert len(suppress(proposals(tops, np.ones(len(tops))), 4.0)) == 1


@effort(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.tuples(*[st.floats(0.2, 2.5)] * 3))
def test_maxima_equal_the_plain_definition(seed, reach):
    values = np.random.default_rng(seed).integers(0, 30, size=(5, 6, 7)).astype(np.float32)
    half = [int(np.ceil(r)) for r in reach]
    expected = []
    for cell in np.ndindex(values.shape):
        box = values[tuple(slice(max(c - h, 0), c + h + 1) for c, h in zip(cell, half, strict=True))]
        near = values[tuple(slice(max(c - 1, 0), c + 2) for c in cell)]
        if values[cell] == box.max() and values[cell] > near.min():
            expected.append(list(cell))
    assert local_maxima(values, reach).tolist() == expected


coordinates = st.integers(0, 12).map(lambda n: n / 2) | st.floats(0, 6, allow_nan=False)


@effort(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(coordinates, coordinates, coordinates, st.sampled_from([0.1, 0.2, 0.5, 0.5, 0.9])), max_size=25),
    st.sampled_from([0.5, 1.0, 2.5, 3.0]),
)
def test_suppression_equals_the_plain_greedy_rule(rows, radius):
    points = np.array([row[:3] for row in rows]).reshape(-1, 3)
    scores = np.array([row[3] for row in rows])
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(np.linalg.norm(points[index] - points[other]) >= radius for other in kept):
            kept.append(int(index))
    found = suppress(proposals(points, scores), radius)
    np.testing.assert_array_equal(found.points.zyx, points[kept])
    np.testing.assert_array_equal(found.score, scores[kept])


# --- the last answer is remembered --------------------------------------------------------------


def test_the_same_question_is_answered_once_and_any_other_anew(monkeypatch):
    features = planted((30, 32, 34), [(10, 10, 10), (20, 22, 24)])
    others = planted((30, 32, 34), [(10, 10, 10)])
    asked = []

    def counted(*question):
        asked.append(question)
        return propose(*question)

    monkeypatch.setattr(matching, "propose", counted)
    search = matching.Search(MatchingSettings())
    first = search.propose(features, QUERY, 6.0)
    assert search.propose(features, Query(positives=OBJECT[None].copy(), negatives=NO_NEGATIVES), 6.0) is first
    assert len(asked) == 1
    roi = np.zeros((30, 32, 34), dtype=bool)
    roi[:15] = True
    against = Query(positives=OBJECT[None], negatives=OTHER[None])
    assert len(search.propose(features, QUERY, 6.0, roi)) < len(first)
    for question in ((features, QUERY, 5.0), (features, against, 6.0), (others, QUERY, 6.0)):
        assert search.propose(*question) is not first
    assert len(asked) == 5


def test_what_is_remembered_keeps_no_tomogram_alive():
    features = planted((12, 12, 12), [(6, 6, 6)])
    search, gone = matching.Search(MatchingSettings()), weakref.ref(features)
    search.propose(features, QUERY, 6.0)
    del features
    gc.collect()
    assert gone() is None
