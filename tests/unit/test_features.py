"""Pooling, similarity and the coarse grid, each against the plain computation on voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.types import Instance, VoxelPoints

CHANNELS = 4


def dense(cells, stride, seed=0, dtype=torch.float32) -> DenseFeatures:
    values = np.random.default_rng(seed).standard_normal((CHANNELS, *cells)).astype(np.float32)
    return DenseFeatures(values=torch.from_numpy(values).to(dtype), grid=CellGrid(tuple(cells), tuple(stride)))


def instance(mask, origin=(0, 0, 0)) -> Instance:
    return Instance(mask=mask, origin_zyx=origin, prompt_zyx=(0.0, 0.0, 0.0), similarity=1.0, confidence=1.0, score=1.0)


def upsampled(features: DenseFeatures) -> np.ndarray:
    """Features at every voxel of the cells, as torch interpolates them."""
    scale = features.grid.stride
    return F.interpolate(
        features.values[None].float(),
        size=tuple(round(n * s) for n, s in zip(features.grid.shape, scale, strict=True)),
        mode="trilinear",
        align_corners=False,
    )[0].numpy()


# --- pooling ----------------------------------------------------------------------------------

strides = st.sampled_from([1.0, 2.0, 4.0, 1.5, 2.5])
cells = st.sampled_from([2, 4, 6])


@effort(max_examples=60, deadline=None)
@given(st.tuples(cells, cells, cells), st.tuples(strides, strides, strides), st.data())
def test_pooling_equals_the_mean_of_upsampled_features(shape, stride, data):
    features = dense(shape, stride, seed=data.draw(st.integers(0, 99)))
    field = upsampled(features)
    corners, masks = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        start = [data.draw(st.integers(0, n - 1)) for n in field.shape[1:]]
        size = [data.draw(st.integers(1, n - s)) for s, n in zip(start, field.shape[1:], strict=True)]
        mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(size) < 0.4
        mask.flat[0] = True
        corners.append(tuple(start))
        masks.append(mask)
    parts = []
    for corner, mask in zip(corners, masks, strict=True):
        box = tuple(slice(c, c + n) for c, n in zip(corner, mask.shape, strict=True))
        parts.append(field[(slice(None), *box)][:, mask])
    expected = np.concatenate(parts, axis=1).mean(axis=1)
    pooled = features.pool([instance(m, c) for m, c in zip(masks, corners, strict=True)])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_pooling_in_an_incomplete_last_cell():
    """17 voxels are 9 cells of 2; the last voxel lies in the outer half of the mean of cells 7 and 8."""
    features = dense((9, 9, 9), (2, 2, 2))
    expected = upsampled(features)[:, 16, 16, 16]
    np.testing.assert_allclose(features.pool([instance(np.ones((1, 1, 1), bool), (16, 16, 16))]), expected, atol=1e-5)


def test_pooling_with_a_single_cell_on_an_axis():
    features = dense((1, 3, 1), (2, 2, 2))
    pooled = features.pool([instance(np.ones((2, 6, 2), bool))])
    np.testing.assert_allclose(pooled, upsampled(features).reshape(CHANNELS, -1).mean(axis=1), atol=1e-5)


def test_empty_masks_weigh_nothing_and_alone_are_refused():
    features = dense((3, 3, 3), (2, 2, 2))
    solid, nothing = instance(np.ones((2, 2, 2), bool), (1, 2, 3)), instance(np.zeros((0, 0, 0), bool))
    np.testing.assert_array_equal(features.pool([nothing, solid]), features.pool([solid]))
    for none in ([], [nothing], [instance(np.zeros((2, 2, 2), bool))]):
        with pytest.raises(ValueError, match="at least one voxel"):
            features.pool(none)


# --- similarity -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_similarity_is_the_cosine_of_every_cell(dtype, monkeypatch):
    monkeypatch.setattr("copick_cryosam.features._SLAB", 50)  # several slabs, the last one incomplete
    features = dense((5, 6, 7), (2, 2, 2), dtype=dtype)
    query = np.random.default_rng(1).standard_normal(CHANNELS).astype(np.float32)
    values = features.values.float().numpy()
    expected = np.einsum("czyx,c->zyx", values, query) / np.linalg.norm(values, axis=0) / np.linalg.norm(query)
    np.testing.assert_allclose(features.similarity(query), expected, atol=1e-6)
    np.testing.assert_allclose(features.similarity(7 * query), expected, atol=1e-6)
    some = np.random.default_rng(2).permutation(expected.size)[:120]
    np.testing.assert_allclose(features.similarity_at(query, some), expected.flat[some], atol=1e-6)
    assert features.similarity_at(query, np.zeros(0, dtype=np.int64)).shape == (0,)


def test_cells_without_a_feature_resemble_nothing():
    features = DenseFeatures(values=torch.zeros(CHANNELS, 2, 2, 2), grid=CellGrid((2, 2, 2), (2, 2, 2)))
    np.testing.assert_array_equal(features.similarity(np.ones(CHANNELS, np.float32)), 0)


# --- coarser levels ---------------------------------------------------------------------------


@effort(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 5))
def test_pooled_features_are_means_of_blocks(shape, factor):
    features = dense(shape, (2.0, 2.5, 3.0))
    coarse = features.pooled(factor)
    assert coarse.grid.shape == tuple(-(-n // factor) for n in shape) == tuple(coarse.values.shape[1:])
    np.testing.assert_allclose(coarse.grid.stride, np.array(features.grid.stride) * factor)
    values = features.values.numpy()
    for cell in np.ndindex(coarse.grid.shape):
        block = tuple(slice(c * factor, (c + 1) * factor) for c in cell)
        expected = values[(slice(None), *block)].reshape(CHANNELS, -1).mean(axis=1)
        np.testing.assert_allclose(coarse.values[(slice(None), *cell)].numpy(), expected, atol=1e-5)


# --- the grid ---------------------------------------------------------------------------------

grids = st.builds(
    CellGrid,
    st.tuples(*[st.integers(1, 500)] * 3),
    st.tuples(*[st.floats(0.5, 32, allow_nan=False)] * 3),
)


@given(grids, st.lists(st.tuples(*[st.floats(-1, 1000, allow_nan=False)] * 3), max_size=5))
def test_cells_and_voxels_round_trip(grid, points):
    there = grid.to_cells(VoxelPoints(np.array(points)))
    np.testing.assert_allclose(grid.to_voxels(there).zyx, VoxelPoints(np.array(points)).zyx, rtol=1e-9, atol=1e-9)


@given(grids)
def test_cells_lie_side_by_side_from_the_first_voxel_s_outer_face(grid):
    stride = np.array(grid.stride)
    first, second = grid.to_voxels(np.array([[0, 0, 0], [1, 1, 1]])).zyx
    np.testing.assert_allclose(first - stride / 2, -0.5, atol=1e-9)
    np.testing.assert_allclose(second - first, stride, atol=1e-9)


@given(grids, st.integers(1, 9))
def test_a_coarser_cell_is_centred_on_the_cells_it_holds(grid, factor):
    middle = np.full((1, 3), (factor - 1) / 2)
    np.testing.assert_allclose(
        grid.coarser(factor).to_voxels(np.zeros((1, 3))).zyx, grid.to_voxels(middle).zyx, atol=1e-9
    )


def test_the_centre_of_a_last_cell_stays_in_the_tomogram():
    grid = CellGrid((9, 20, 27), (2, 2, 2), (17, 40, 53))
    last = grid.to_voxels(np.array(grid.shape)[None] - 1)
    np.testing.assert_array_equal(last.zyx, [[16.5, 38.5, 52.5]])
    np.testing.assert_array_equal(grid.clamp(last).zyx, [[16, 38.5, 52]])
    np.testing.assert_array_equal(grid.coarser(8).clamp(VoxelPoints(np.array([23.5, 7.5, -0.2]))).zyx, [[16, 7.5, 0]])
    np.testing.assert_array_equal(CellGrid((9, 20, 27), (2, 2, 2)).clamp(last).zyx, last.zyx)
