"""What every encoder must keep to, run over each registered backend; and EmbedNet's tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.config import HALO, EncoderSettings, MatchingSettings
from copick_cryosam.encoders import Encoder, available_encoders, load_encoder
from copick_cryosam.encoders.embednet import STRIDE, tiles_of
from copick_cryosam.encoders.vit import PlaneEncoder, SamTokens
from copick_cryosam.errors import InputError
from copick_cryosam.features import DenseFeatures
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.matching import merge_queries, propose
from copick_cryosam.types import Instance

CPU = torch.device("cpu")
SHAPES = ((17, 40, 53), (33, 48, 31))
RADIUS = 6.0
CENTRES = ((24, 30, 32), (5, 6, 50), (42, 52, 6))
"""In the middle, and one radius from the edges."""


pytestmark = pytest.mark.usefixtures("one_thread")


TRANSFORMERS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


@pytest.fixture(scope="module", params=[*available_encoders(), *TRANSFORMERS])
def make(request, tiny_transformers, official_sam) -> Callable[[], Encoder]:
    """Loads an encoder. Vision transformers are tiny ones with random weights, of every kind there is.

    At 256 pixels a plane their tokens are about as fine as the balls: then even random ones tell a ball from noise.
    """

    def transformer() -> Encoder:
        return load_encoder(EncoderSettings(name=str(tiny_transformers[request.param]), longest_side=256), CPU)

    def sam() -> Encoder:
        trunk = SamTokens(SamTrunk(official_sam.random_sam(depth=2, global_layers=(1,)), CPU))
        return PlaneEncoder("sam", "sam-random", trunk, EncoderSettings(name="sam"), CPU)

    def registered() -> Encoder:
        return load_encoder(EncoderSettings(name=request.param), CPU)

    return {"sam": sam, **dict.fromkeys(TRANSFORMERS, transformer)}.get(request.param, registered)


@pytest.fixture(scope="module")
def encoder(make) -> Encoder:
    return make()


def features_of(encoder, volume) -> np.ndarray:
    """All that an encoder holds of a volume, as one array: cells or tokens."""
    features = encoder.encode(volume)
    if isinstance(features, DenseFeatures):
        return features.values.float().numpy()
    return np.concatenate([view.tokens.float().numpy().ravel() for view in features.views])


def ball_volume(shape, centres, radius=RADIUS, noise=0.5, seed=5) -> np.ndarray:
    """A standardised volume of bright balls in noise."""
    values = noise * np.random.default_rng(seed).standard_normal(shape)
    for centre in centres:
        distance = np.sqrt(((np.indices(shape) - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0))
        values += 1 / (1 + np.exp(2 * (distance - radius)))
    return ((values - values.mean()) / values.std()).astype(np.float32)


def ball_instance(centre, radius=RADIUS) -> Instance:
    half = int(radius)
    offsets = np.indices((2 * half + 1,) * 3) - half
    corner = tuple(int(c) - half for c in centre)
    return Instance(
        mask=(offsets**2).sum(axis=0) <= radius**2,
        origin_zyx=corner,
        prompt_zyx=tuple(float(c) for c in centre),
        similarity=1.0,
        confidence=1.0,
        score=1.0,
    )


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"expected one of .*embednet.*found 'nosuch'"):
        load_encoder(EncoderSettings(name="nosuch"), CPU)


def test_it_says_who_it_is(encoder, make):
    assert encoder.name in (*available_encoders(), *TRANSFORMERS)
    assert encoder.signature.startswith(encoder.name + "-")
    assert make().signature == encoder.signature


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_values_and_the_grid(encoder, shape):
    volume = ball_volume(shape, [tuple(n // 2 for n in shape)])
    untouched = volume.copy()
    features = encoder.encode(volume)
    grid = features.grid
    query = features.pool([ball_instance([n // 2 for n in shape])])
    assert query.dtype == np.float32
    assert query.ndim == 1
    assert np.isfinite(query).all()
    similarity = features.similarity(query)
    assert similarity.shape == grid.shape
    assert similarity.dtype == np.float32
    assert np.abs(similarity).max() <= 1 + 1e-5
    assert similarity.std() > 1e-3
    some = np.arange(0, similarity.size, 7)
    np.testing.assert_allclose(features.similarity_at(query, some), similarity.flat[some], atol=1e-5)
    coarse = features.pooled(4)
    assert coarse.grid == grid.coarser(4)
    assert coarse.similarity(query).shape == coarse.grid.shape
    assert grid.extent == shape
    for cells, stride, voxels in zip(grid.shape, grid.stride, shape, strict=True):
        # the cells reach from the first voxel's outer face to the last one's, and not a whole cell further
        assert voxels <= cells * stride < voxels + stride
    for known in (features.centre, features.foreground):
        if known is not None:
            assert known.shape == grid.shape
            assert known.min() >= 0
            assert known.max() <= 1
    assert (features.foreground is not None) == encoder.recognises_particles
    np.testing.assert_array_equal(volume, untouched)


def test_encoding_twice_gives_the_same(encoder):
    volume = ball_volume(SHAPES[0], [(8, 20, 26)])
    once, twice = features_of(encoder, volume), features_of(encoder, volume)
    assert once.std() > 0
    np.testing.assert_array_equal(once, twice)


def test_progress_ends_at_its_total(encoder):
    told: list[tuple[str, int, int]] = []
    encoder.encode(ball_volume(SHAPES[0], []), progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"encode"}
    assert [done for _, done, _ in told] == list(range(1, told[-1][2] + 1))


def test_planted_balls_are_proposed_where_they_are(encoder):
    """One ball is the seed; the best proposals are all balls, those at the edges too."""
    volume = ball_volume((49, 59, 57), CENTRES)
    features = encoder.encode(volume)
    query = merge_queries([(features.pool([ball_instance(CENTRES[0])]), 1)], [])
    proposals = propose(features, query, RADIUS, MatchingSettings())
    assert (proposals.points.zyx >= 0).all()
    assert (proposals.points.zyx <= np.array(volume.shape) - 1).all()
    best = proposals.points.zyx[: len(CENTRES)]
    for centre in CENTRES:
        assert np.linalg.norm(best - centre, axis=1).min() <= 2, (centre, best)


@pytest.mark.parametrize(("spacing", "radius", "shape"), [(5.0, 12.0, (65, 75, 91)), (20.0, 3.0, (21, 24, 33))])
def test_another_voxel_spacing(encoder, spacing, radius, shape):
    """The same ball in finer and coarser voxels: the grid still tells where it lies."""
    centres = [(shape[0] // 2, shape[1] - 2 * radius, 2 * radius), (shape[0] // 2, 2 * radius, shape[2] - 2 * radius)]
    volume = ball_volume(shape, centres, radius)
    features = encoder.encode(volume, voxel_spacing=spacing)
    for cells, stride, voxels in zip(features.grid.shape, features.grid.stride, shape, strict=True):
        assert voxels - 1e-6 <= cells * stride < voxels + stride
    query = merge_queries([(features.pool([ball_instance(centres[0], radius)]), 1)], [])
    # smoothed a little more than by default: the fake encoder's similarity has a flat top, and this is about the grid
    proposals = propose(features, query, radius, MatchingSettings(smoothing=0.35))
    for centre in centres:
        off = np.linalg.norm(proposals.points.zyx[:2] - centre, axis=1).min()
        assert off <= max(2, *features.grid.stride), (centre, proposals.points.zyx[:2])


# --- EmbedNet's own ---------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_and_resampling_scales_the_grid():
    encoder = load_encoder(EncoderSettings(name="embednet"), CPU)
    volume = ball_volume((32, 34, 37), [(16, 17, 18)])
    lengths = encoder.encode(volume).values.float().norm(dim=0)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=2e-3)
    assert encoder.encode(volume, voxel_spacing=10.5).grid.stride == (2, 2, 2)
    np.testing.assert_allclose(encoder.encode(volume, voxel_spacing=20.0).grid.stride, 1)
    np.testing.assert_allclose(encoder.encode(volume, voxel_spacing=5.0).grid.stride, (4, 4, 74 / 18))


def test_features_hardly_depend_on_the_tiles():
    """Cells near a tile's border see `HALO` voxels beyond it, less than the net's sight; the rest matters little."""
    volume = ball_volume((32, 80, 224), [(16, 30, 40), (12, 60, 70), (20, 64, 20), (16, 40, 120), (14, 20, 180)])
    whole = load_encoder(EncoderSettings(name="embednet", tile=256), CPU).encode(volume)
    tiled = load_encoder(EncoderSettings(name="embednet", tile=32), CPU).encode(volume)
    cosine = (whole.values.float() * tiled.values.float()).sum(0)
    assert cosine.mean() > 0.99
    assert cosine.quantile(0.01) > 0.95
    assert whole.centre is not None
    assert tiled.centre is not None
    assert np.abs(whole.centre - tiled.centre).max() < 0.2


edges = st.integers(1, 300)


@effort(max_examples=60, deadline=None)
@given(st.tuples(edges, edges, edges), st.sampled_from([32, 48, 64, 256]))
def test_tiles_own_every_cell_exactly_once(shape, tile):
    owned = np.zeros(tuple(-(-n // STRIDE) for n in shape), dtype=np.uint8)
    for one in tiles_of(shape, tile):
        owned[one.cells] += 1
        assert all(edge % 16 == 0 for edge in one.padded)
        for read, into, padded, mine, cells, size in zip(
            one.read, one.into, one.padded, one.owned, one.cells, shape, strict=True
        ):
            assert 0 <= read.start < read.stop <= size
            assert into.stop - into.start == read.stop - read.start <= padded
            assert mine.stop - mine.start == cells.stop - cells.start
            assert mine.stop * STRIDE <= padded
            # the same cell: its first voxel, counted in the block and in the tomogram
            assert read.start + mine.start * STRIDE == cells.start * STRIDE
            assert read.start == 0 or cells.start * STRIDE - read.start >= HALO
            assert read.stop == size or read.stop - cells.stop * STRIDE >= HALO
    assert (owned == 1).all()


def test_a_halo_beyond_the_net_s_sight_makes_tiles_exact():
    """Not the tiling but only the cut halo makes the difference: with enough of it there is none."""
    from copick_cryosam.encoders import embednet

    volume = ball_volume((32, 32, 224), [(16, 16, 40), (16, 16, 150)])
    encoder = load_encoder(EncoderSettings(name="embednet", tile=32, precision="fp32"), CPU)
    tile = next(one for one in tiles_of(volume.shape, 32, halo=96) if one.cells[2].start == 96 // STRIDE)
    whole = next(iter(tiles_of(volume.shape, 256)))
    assert tile.padded[2] == 224
    np.testing.assert_array_equal(
        encoder._encode_tile(volume, tile)[0].numpy(),
        encoder._encode_tile(volume, whole)[0].numpy()[(slice(None), *tile.cells)],
    )
    assert embednet.HALO % 16 == 0
    assert list(itertools.islice(tiles_of((16, 16, 16), 32), 2)) == list(tiles_of((16, 16, 16), 32))


def test_embednet_in_bf16_sees_the_same():
    volume = ball_volume((32, 48, 40), [(16, 20, 18)])
    exact, near = (
        load_encoder(EncoderSettings(name="embednet", precision=precision), CPU).encode(volume)
        for precision in ("fp32", "bf16")
    )
    cosine = (exact.values.float() * near.values.float()).sum(0)
    assert 0.97 < cosine.min() < 1
    np.testing.assert_allclose(near.centre, exact.centre, atol=0.05)


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_embednet_computes_in_bf16_by_itself_only_where_the_cpu_does(able, expected, monkeypatch):
    monkeypatch.setattr("copick_cryosam.devices.cpu_computes_bf16", lambda: able)
    assert load_encoder(EncoderSettings(name="embednet"), CPU)._dtype is expected
    assert load_encoder(EncoderSettings(name="embednet", precision="fp32"), CPU)._dtype is torch.float32
