"""Prompts on many pictures at once against the official decoder, one prompt at a time; crops included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from copick_cryosam.segmenters.sam_decoder import MASKS, SamDecoder

NUMBER = 5
POINTS = torch.tensor([[10.0, 20.0], [200.3, 30.2], [0.0, 0.0], [255.0, 60.0], [127.5, 40.0]])
BOXES = torch.tensor([[0.0, 0.0, 50.0, 40.0]] * NUMBER) + 3 * torch.arange(NUMBER)[:, None]
BOXED = torch.tensor([True, False, True, True, False])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sam(official_sam):
    return official_sam.random_sam()


def inputs(tokens: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn((NUMBER, 256, *tokens), generator=generator)
    return embeddings, 5 * torch.randn((NUMBER, 4 * tokens[0], 4 * tokens[1]), generator=generator)


@torch.no_grad()
def official(sam, embedding: Tensor, point: Tensor, box: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One prompt through the official modules; of a crop, positions and the no-mask embedding are cut likewise."""
    rows, columns = embedding.shape[1:]
    encoder = sam.prompt_encoder
    sparse, dense = encoder(
        points=(point[None, None], torch.ones((1, 1))),
        boxes=None if box is None else box[None],
        masks=None if mask is None else mask[None, None],
    )
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding[None],
        image_pe=encoder.get_dense_pe()[:, :, :rows, :columns],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense[:, :, :rows, :columns],
    )


@pytest.mark.parametrize("tokens", [(16, 16), (4, 16), (16, 7), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boxed", [None, BOXED, torch.zeros_like(BOXED), torch.ones_like(BOXED)])
def test_a_batch_equals_the_official_decoder_prompt_by_prompt(sam, tokens, masked, boxed):
    embeddings, masks = inputs(tokens)
    low, iou = SamDecoder(sam, torch.float32).decode(
        embeddings, POINTS, None if boxed is None else BOXES, boxed, masks if masked else None
    )
    assert low.shape == (NUMBER, MASKS, 4 * tokens[0], 4 * tokens[1])
    for n in range(NUMBER):
        box = BOXES[n] if boxed is not None and boxed[n] else None
        expected, scores = official(sam, embeddings[n], POINTS[n], box, masks[n] if masked else None)
        assert (low[n] - expected[0]).abs().max() < 1e-5 * expected.abs().max()
        assert (iou[n] - scores[0]).abs().max() < 1e-5


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("column", [0, 15])
def test_a_click_on_a_token_has_that_tokens_position(sam, row, column):
    """Of the padded square, also for a crop of 4 rows; a rescaled encoding would be that of row 4 * row."""
    decoder = SamDecoder(sam, torch.float32)
    click = torch.tensor([[16 * column + 7.5, 16 * row + 7.5]])
    sparse, _ = decoder._encode(click, None, None)
    position = sparse[0, 0] - sam.prompt_encoder.point_embeddings[1].weight[0]
    torch.testing.assert_close(position, decoder._positions[0, :, row, column], atol=1e-4, rtol=0)


def test_bf16_stays_near_fp32_and_gives_full_precision_back(sam):
    embeddings, masks = inputs((4, 16))
    low, iou = SamDecoder(sam, torch.float32).decode(embeddings, POINTS, BOXES, BOXED, masks)
    half, scores = SamDecoder(sam, torch.bfloat16).decode(embeddings.bfloat16(), POINTS, BOXES, BOXED, masks)
    assert half.dtype == scores.dtype == torch.float32
    assert 0 < (half - low).std() < 0.05 * low.std()
    assert (scores - iou).abs().max() < 0.05
    # Logits rounded to bf16 would come in plateaus, and the point of highest confidence would be lost in one.
    assert len(half[0, 0].unique()) > 0.9 * half[0, 0].numel()
