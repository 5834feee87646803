"""SAM's image encoder against the official one, on squares and on crops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from copick_cryosam.errors import InputError
from copick_cryosam.foundation.sam_trunk import SamTrunk, padded_shape

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(official_sam):
    """16 x 16 tokens; windows of 5, so that four of them do not fill the square."""
    return official_sam.random_sam(window=5)


def pictures(number: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand((number, 1, 9, 11), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[:, 0]
    return (smooth + 0.2 * torch.rand((number, height, width), generator=generator)).clamp(0, 1)


@torch.no_grad()
def official_encoding(sam, values: torch.Tensor) -> torch.Tensor:
    """The official way: 0 to 255, preprocess (normalise, pad to the square), image encoder."""
    return sam.image_encoder(sam.preprocess(values[:, None].expand(-1, 3, -1, -1) * 255))


@torch.no_grad()
def official_crop(sam, values: torch.Tensor) -> torch.Tensor:
    """The official encoder for a picture of whole tokens, its position embeddings cut so that it interpolates none."""
    rows, columns = (side // 16 for side in values.shape[1:])
    encoder = copy.deepcopy(sam.image_encoder)
    encoder.pos_embed = nn.Parameter(encoder.pos_embed[:, :rows, :columns])
    for block in encoder.blocks:
        if block.window_size == 0:
            for name, side in (("rel_pos_h", rows), ("rel_pos_w", columns)):
                table = getattr(block.attn, name)
                middle = (len(table) - 1) // 2
                setattr(block.attn, name, nn.Parameter(table[middle - side + 1 : middle + side]))
    normalised = (values[:, None].expand(-1, 3, -1, -1) * 255 - sam.pixel_mean) / sam.pixel_std
    return encoder(normalised)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other).abs().max() / other.abs().max())


def test_vit_b_on_squares_equals_the_official_encoder(official_sam):
    sam = official_sam.random_sam(**official_sam.VIT_B)
    values = pictures(1, 256, 256)
    expected = official_encoding(sam, values)
    assert expected.std() > 0.5
    assert difference(SamTrunk(sam, CPU).encode(values), expected) < 1e-5


@pytest.mark.parametrize("window", [5, 14])
def test_a_batch_on_squares_equals_the_official_encoder(official_sam, window):
    sam = official_sam.random_sam(window=window)
    values = pictures(3, 256, 256)
    assert difference(SamTrunk(sam, CPU).encode(values), official_encoding(sam, values)) < 1e-5


@pytest.mark.parametrize("shape", [(256, 256), (250, 256), (53, 256), (256, 130), (90, 100)])
def test_square_padding_equals_the_official_preprocessing(small, shape):
    values = pictures(2, *shape)
    encoded = SamTrunk(small, CPU).encode(values, padding="square")
    assert encoded.shape == (2, 256, 16, 16)
    assert difference(encoded, official_encoding(small, values)) < 1e-5


@pytest.mark.parametrize("shape", [(256, 256), (64, 256), (256, 80), (16, 256), (112, 144)])
@pytest.mark.parametrize("window", [5, 14])
def test_native_equals_the_official_encoder_with_cut_position_embeddings(official_sam, shape, window):
    sam = official_sam.random_sam(window=window)
    values = pictures(2, *shape)
    encoded = SamTrunk(sam, CPU).encode(values)
    assert encoded.shape == (2, 256, shape[0] // 16, shape[1] // 16)
    assert difference(encoded, official_crop(sam, values)) < 1e-5


def test_on_full_squares_native_and_square_are_the_same(small):
    values = pictures(2, 256, 256)
    trunk = SamTrunk(small, CPU)
    assert torch.equal(trunk.encode(values), trunk.encode(values, padding="square"))


def test_native_pads_to_whole_tokens_with_zeros_after_the_normalisation(small):
    values = pictures(1, 70, 256)
    mean = (small.pixel_mean / 255).squeeze()
    filled = torch.zeros(1, 3, 80, 256) + mean[None, :, None, None]
    filled[:, :, :70] = values[:, None]
    trunk = SamTrunk(small, CPU)
    assert trunk.encode(values).shape == (1, 256, 5, 16)
    assert difference(trunk.encode(values), trunk.encode(filled)) < 1e-5


def test_windows_that_hold_the_same_tokens_agree_between_native_and_square(official_sam):
    """Without global layers a window knows its own tokens only; the last 3 x 3 convolution sees one more."""
    sam = official_sam.random_sam(window=5, global_layers=())
    trunk = SamTrunk(sam, CPU)
    values = pictures(1, 160, 256)
    native, square = trunk.encode(values), trunk.encode(values, padding="square")
    assert difference(native[:, :, :9], square[:, :, :9]) < 1e-5
    assert difference(native[:, :, 9:], square[:, :, 9:10]) > 1e-3


def test_global_layers_no_longer_see_the_padding(small):
    """How far native may be from square: the same picture, but not the same numbers."""
    trunk = SamTrunk(small, CPU)
    values = pictures(1, 64, 256)
    native, square = trunk.encode(values), trunk.encode(values, padding="square")[:, :, :4]
    assert difference(native, square) > 1e-3
    alike = nn.functional.cosine_similarity(native, square, dim=1)
    swapped = nn.functional.cosine_similarity(native, square.flip(3), dim=1)
    assert alike.mean() > swapped.mean() + 0.1


def test_one_channel_is_repeated(small):
    values = pictures(2, 64, 80)
    trunk = SamTrunk(small, CPU)
    assert torch.equal(trunk.encode(values), trunk.encode(values[:, None].expand(-1, 3, -1, -1)))
    coloured = torch.stack([values, values.flip(1), values.flip(2)], dim=1)
    assert difference(trunk.encode(coloured), trunk.encode(values)) > 0.01


@pytest.mark.parametrize("shape", [(1, 257, 64), (1, 64, 257), (1, 1, 64, 64)])
def test_pictures_that_do_not_fit_are_refused(small, shape):
    with pytest.raises(InputError, match=r"expected 3 channels and at most 256 x 256 pixels, found"):
        SamTrunk(small, CPU).encode(torch.zeros(shape))


def test_bf16_stays_near_fp32(small):
    values = pictures(2, 112, 256)
    full = SamTrunk(small, CPU, "fp32").encode(values)
    half = SamTrunk(small, CPU, "bf16").encode(values)
    assert full.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - full).std() / full.std() < 0.02


def test_auto_is_full_precision_on_the_cpu(small):
    assert SamTrunk(small, CPU, "auto").dtype == torch.float32


def test_compiled_shapes_do_not_change_with_the_last_batch(small, monkeypatch):
    seen = []

    def compiled(function, **_):
        def call(values):
            seen.append(tuple(values.shape))
            return function(values)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    trunk = SamTrunk(small, CPU, compile=True)
    values = pictures(4, 64, 256)
    whole, last = trunk.encode(values, batch=4), trunk.encode(values[:1], batch=4)
    assert seen == [(4, 3, 64, 256)] * 2
    assert last.shape == (1, 256, 4, 16)
    assert difference(last, whole[:1]) < 1e-5


def test_padded_shapes():
    assert padded_shape((213, 1024), 1024, 16, "native") == (224, 1024)
    assert padded_shape((224, 1024), 1024, 16, "native") == (224, 1024)
    assert padded_shape((213, 1024), 1024, 16, "square") == (1024, 1024)
