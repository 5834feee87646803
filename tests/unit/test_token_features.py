"""Features of plane tokens against the plain computation: every voxel's vector made, compared and averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from copick_cryosam import token_features
from copick_cryosam.config import MatchingSettings
from copick_cryosam.features import DenseFeatures
from copick_cryosam.matching import hierarchical_map, merge_queries, propose
from copick_cryosam.token_features import TokenFeatures
from copick_cryosam.types import Instance

CHANNELS = 5
TOL = 1e-5


pytestmark = pytest.mark.usefixtures("one_thread")


def plane_of(extent, axis) -> tuple[int, int]:
    height, width = (n for other, n in enumerate(extent) if other != axis)
    return height, width


def weights(voxels, stride, cells) -> np.ndarray:
    """Linear interpolation, written out: half-pixel centres, clamped."""
    matrix = np.zeros((voxels, cells))
    for voxel in range(voxels):
        position = min(max((voxel + 0.5) / stride - 0.5, 0), cells - 1)
        low = int(position)
        matrix[voxel, low] += 1 - (position - low)
        if position > low:
            matrix[voxel, low + 1] += position - low
    return matrix


def dense_of(tokens, strides, extent) -> torch.Tensor:
    """The vector of every voxel, shape (3C, Z, Y, X), float64."""
    parts = []
    for axis, (one, stride) in enumerate(zip(tokens, strides, strict=True)):
        plane = plane_of(extent, axis)
        rows, columns = (weights(n, s, c) for n, s, c in zip(plane, stride, one.shape[1:3], strict=True))
        vectors = np.einsum("ri,pijc,kj->cprk", rows, one.double().numpy(), columns)
        parts.append(np.moveaxis(vectors, 1, axis + 1))
    return torch.from_numpy(np.concatenate(parts))


def cosine_of(dense, query) -> np.ndarray:
    return F.cosine_similarity(dense, torch.from_numpy(query).double()[:, None, None, None], dim=0).numpy()


def block_mean(values, factor) -> torch.Tensor:
    """Means over blocks of a (C, Z, Y, X) tensor, one by one."""
    shape = [-(-n // factor) for n in values.shape[1:]]
    result = torch.empty(len(values), *shape, dtype=values.dtype)
    for cell in np.ndindex(*shape):
        box = tuple(slice(c * factor, (c + 1) * factor) for c in cell)
        result[(slice(None), *cell)] = values[(slice(None), *box)].flatten(1).mean(1)
    return result


def random_tokens(extent, strides, seed=0, dtype=torch.float32) -> list[torch.Tensor]:
    """Tokens that cover the planes; where the stride does not divide them, the last hangs over."""
    maker = torch.Generator().manual_seed(seed)
    tokens = []
    for axis, stride in enumerate(strides):
        cells = [int(np.ceil(n / s - 1e-9)) for n, s in zip(plane_of(extent, axis), stride, strict=True)]
        tokens.append(torch.randn(extent[axis], *cells, CHANNELS, generator=maker).to(dtype))
    return tokens


def random_query(seed=1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(3 * CHANNELS).astype(np.float32)


def instance(mask, origin=(0, 0, 0)) -> Instance:
    return Instance(mask=mask, origin_zyx=origin, prompt_zyx=(0.0, 0.0, 0.0), similarity=1.0, confidence=1.0, score=1.0)


EXTENT = (9, 20, 13)
STRIDES = ((3.3, 2.7), (4.0, 13.0), (1.5, 20.0))
"""Not whole, whole, one token for a whole side, and one larger than the side."""

edge = st.integers(1, 14)
step = st.sampled_from([1.0, 1.37, 2.0, 3.3, 4.0, 14.0, 16.5])
cases = st.tuples(st.tuples(edge, edge, edge), st.tuples(*[st.tuples(step, step)] * 3), st.integers(0, 9))


# --- similarity -------------------------------------------------------------------------------


@effort(max_examples=60, deadline=None)
@given(cases, st.integers(1, 5))
def test_similarity_is_the_mean_of_the_voxels_cosines(case, stride):
    extent, strides, seed = case
    tokens = random_tokens(extent, strides, seed)
    features = TokenFeatures.of_volume(tokens, strides, extent, stride)
    query = random_query(seed)
    of_voxels = cosine_of(dense_of(tokens, strides, extent), query)
    expected = block_mean(torch.from_numpy(of_voxels)[None], stride)[0].numpy()
    found = features.similarity(query)
    assert found.shape == features.grid.shape == tuple(-(-n // stride) for n in extent)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=TOL)
    np.testing.assert_allclose(features.similarity(3 * query), expected, atol=TOL)


@pytest.mark.parametrize("stride", [1, 2])
def test_similarity_in_slabs_and_of_some_cells(stride, monkeypatch):
    features = TokenFeatures.of_volume(random_tokens(EXTENT, STRIDES), STRIDES, EXTENT, stride)
    whole = features.similarity(random_query())
    monkeypatch.setattr(token_features, "_SLAB", 600)  # several slabs, the last one incomplete
    monkeypatch.setattr(token_features, "_CHUNK", {"cpu": 40})
    again = TokenFeatures.of_volume(random_tokens(EXTENT, STRIDES), STRIDES, EXTENT, stride)
    np.testing.assert_allclose(again.similarity(random_query()), whole, atol=1e-6)
    some = np.random.default_rng(2).permutation(whole.size)[:57]
    np.testing.assert_allclose(again.similarity_at(random_query(), some), whole.flat[some], atol=1e-6)
    assert again.similarity_at(random_query(), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_tokens_are_kept_as_they_are_and_computed_with_in_float32():
    tokens = random_tokens(EXTENT, STRIDES, dtype=torch.float16)
    features = TokenFeatures.of_volume(tokens, STRIDES, EXTENT)
    assert all(view.tokens is one for view, one in zip(features.views, tokens, strict=True))
    expected = cosine_of(dense_of(tokens, STRIDES, EXTENT), random_query())
    np.testing.assert_allclose(features.similarity(random_query()), expected, atol=TOL)


def test_voxels_without_a_feature_resemble_nothing():
    tokens = [torch.zeros_like(one) for one in random_tokens(EXTENT, STRIDES)]
    features = TokenFeatures.of_volume(tokens, STRIDES, EXTENT, 2)
    np.testing.assert_array_equal(features.similarity(random_query()), 0)


def test_what_does_not_fit_is_refused():
    tokens = random_tokens(EXTENT, STRIDES)
    with pytest.raises(ValueError, match="expected 9 planes across axis 0, found 8"):
        TokenFeatures.of_volume([tokens[0][:-1], *tokens[1:]], STRIDES, EXTENT)
    with pytest.raises(ValueError, match=r"expected shape \(15,\), found \(5,\)"):
        TokenFeatures.of_volume(tokens, STRIDES, EXTENT).similarity(random_query()[:5])


# --- pooling a query --------------------------------------------------------------------------


@effort(max_examples=50, deadline=None)
@given(cases, st.integers(1, 3), st.data())
def test_pooling_equals_the_mean_of_the_voxels_vectors(case, stride, data):
    extent, strides, seed = case
    tokens = random_tokens(extent, strides, seed)
    dense = dense_of(tokens, strides, extent).numpy()
    parts, masks = [], []
    for _ in range(data.draw(st.integers(1, 2))):
        start = [data.draw(st.integers(0, n - 1)) for n in extent]
        size = [data.draw(st.integers(1, n - s)) for s, n in zip(start, extent, strict=True)]
        mask = np.random.default_rng(seed).random(size) < 0.4
        mask.flat[0] = True
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        parts.append(dense[(slice(None), *box)][:, mask])
        masks.append(instance(mask, tuple(start)))
    pooled = TokenFeatures.of_volume(tokens, strides, extent, stride).pool(masks)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, np.concatenate(parts, axis=1).mean(axis=1), atol=TOL)


def test_empty_masks_weigh_nothing_and_alone_are_refused():
    features = TokenFeatures.of_volume(random_tokens(EXTENT, STRIDES), STRIDES, EXTENT)
    solid, nothing = instance(np.ones((2, 2, 2), bool), (1, 2, 3)), instance(np.zeros((0, 0, 0), bool))
    np.testing.assert_array_equal(features.pool([nothing, solid]), features.pool([solid]))
    with pytest.raises(ValueError, match="at least one voxel"):
        features.pool([nothing])


def test_only_the_planes_that_a_mask_touches_are_read():
    tokens = random_tokens(EXTENT, STRIDES)
    expected = TokenFeatures.of_volume(tokens, STRIDES, EXTENT).pool([instance(np.ones((2, 3, 2), bool), (4, 6, 7))])
    spoilt = TokenFeatures.of_volume(tokens, STRIDES, EXTENT)
    for view, start, stop in zip(spoilt.views, (4, 6, 7), (6, 9, 9), strict=True):
        view.tokens[: start - 1], view.tokens[stop + 1 :] = torch.nan, torch.nan
    np.testing.assert_array_equal(spoilt.pool([instance(np.ones((2, 3, 2), bool), (4, 6, 7))]), expected)


# --- coarser levels ---------------------------------------------------------------------------


@effort(max_examples=60, deadline=None)
@given(cases, st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 16]))
def test_pooled_features_are_means_of_vectors(case, stride, factor):
    extent, strides, seed = case
    tokens = random_tokens(extent, strides, seed)
    coarse = TokenFeatures.of_volume(tokens, strides, extent, stride).pooled(factor)
    mean = block_mean(dense_of(tokens, strides, extent), stride * factor)
    assert coarse.grid.shape == tuple(mean.shape[1:])
    assert coarse.grid.stride == (stride * factor,) * 3
    assert coarse.grid.extent == extent
    query = random_query(seed)
    np.testing.assert_allclose(coarse.similarity(query), cosine_of(mean, query), atol=TOL)
    # a level of its own: it pools as features on its grid do, and becomes coarser again
    dense = DenseFeatures(values=mean.float(), grid=coarse.grid)
    whole = [instance(np.ones([max(1, n - 1) for n in extent], bool))]
    np.testing.assert_allclose(coarse.pool(whole), dense.pool(whole), atol=TOL)
    if all(n % (stride * factor) == 0 for n in extent):
        again = cosine_of(block_mean(mean, 2), query)
        np.testing.assert_allclose(coarse.pooled(2).similarity(query), again, atol=TOL)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_coarser_levels_hold_fewer_tokens_by_their_factor(factor):
    """Neither a coarse grid finer than the tokens nor one coarser than them costs more than their share."""
    extent, strides = (32, 64, 48), ((8.0, 8.0),) * 3
    features = TokenFeatures.of_volume(random_tokens(extent, strides), strides, extent)
    before, after = (sum(view.tokens.numel() for view in one.views) for one in (features, features.pooled(factor)))
    assert after <= before / factor


def test_one_voxel_per_cell_is_no_coarser_level():
    features = TokenFeatures.of_volume(random_tokens(EXTENT, STRIDES), STRIDES, EXTENT)
    assert features.pooled(1) is features


# --- the hierarchy against the exhaustive map ---------------------------------------------------


def planted(extent, centres, radius) -> TokenFeatures:
    """Features of bright balls: of each patch of 5 x 5 voxels its mean, that squared, and a constant."""
    volume = np.zeros(extent, dtype=np.float32)
    for centre in centres:
        distance = np.sqrt(((np.indices(extent) - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0))
        volume = np.maximum(volume, 1 / (1 + np.exp(2 * (distance - radius))))
    tokens = []
    for axis in range(3):
        planes = torch.from_numpy(np.moveaxis(volume, axis, 0).copy()).float()
        mean = F.avg_pool2d(planes, 5)
        tokens.append(torch.stack([mean, mean**2, torch.full_like(mean, 0.3)], dim=-1))
    return TokenFeatures.of_volume(tokens, ((5.0, 5.0),) * 3, extent)


def test_with_no_threshold_the_hierarchy_ends_at_the_exhaustive_map():
    features = TokenFeatures.of_volume(random_tokens(EXTENT, STRIDES), STRIDES, EXTENT)
    query = merge_queries([(random_query(), 1)], [])
    settings = MatchingSettings(strategy="hierarchical", ratios=(4, 2, 1), similarity_threshold=-1)
    found, grid = hierarchical_map(features, query, settings)
    assert grid == features.grid
    np.testing.assert_allclose(found, features.similarity(random_query()), atol=1e-6)


def test_hierarchy_and_exhaustive_find_planted_objects_at_the_same_voxels():
    """The centres lie in the middle of patches, so that every map has its peak in one voxel."""
    centres, radius = ((12, 17, 22), (32, 37, 12), (12, 37, 42)), 6.0
    features = planted((45, 50, 55), centres, radius)
    # of one voxel alone: what is most like the mean over a ball is not its middle
    query = merge_queries([(features.pool([instance(np.ones((1, 1, 1), bool), centres[0])]), 1)], [])
    settings = MatchingSettings(strategy="hierarchical", ratios=(8, 4, 2, 1), similarity_threshold=0.5)
    coarse_to_fine, _ = hierarchical_map(features, query, settings)
    exhaustive = features.similarity(query.positives[0])
    kept = coarse_to_fine > -1
    assert 0 < kept.mean() < 0.2
    np.testing.assert_allclose(coarse_to_fine[kept], exhaustive[kept], atol=1e-6)
    for centre in centres:
        around = tuple(slice(c - 8, c + 9) for c in centre)
        for found in (exhaustive, coarse_to_fine):
            highest = np.unravel_index(found[around].argmax(), found[around].shape)
            np.testing.assert_array_equal(highest, (8, 8, 8))
    # smoothing counts how much around a voxel was kept, so that the hierarchy's proposals may lie a voxel off
    points = propose(features, query, radius, settings).points.zyx[: len(centres)]
    assert np.linalg.norm(points[:, None] - np.array(centres), axis=2).min(axis=0).max() <= 2


# --- memory -----------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Watches every tensor that torch makes, for the one with the most numbers."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() <= 4 * one.numel():
                self.numbers = max(self.numbers, one.numel())
        return result


@pytest.mark.parametrize("depth", [24, 96])
def test_memory_does_not_grow_with_the_depth(depth, monkeypatch):
    """Slabs and chunks bound every tensor but those of one number per token."""
    slab, chunk = 8 * 40 * 48, 5000
    monkeypatch.setattr(token_features, "_SLAB", slab)
    monkeypatch.setattr(token_features, "_CHUNK", {"cpu": chunk})
    extent, strides = (depth, 40, 48), ((8.0, 8.0),) * 3
    tokens = [
        torch.randn(extent[axis], *(n // 8 for n in plane_of(extent, axis)), 64, dtype=torch.float32)
        for axis in range(3)
    ]
    with Largest() as watched:
        TokenFeatures.of_volume(tokens, strides, extent, 2).similarity(np.ones(192, dtype=np.float32))
    per_token = max(4 * one[..., 0].numel() for one in tokens)
    assert watched.numbers <= max(slab, chunk, per_token)
