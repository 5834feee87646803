"""SAM's prompt encoder and mask decoder for a batch in which every prompt lies on a picture of its own.

The official ``MaskDecoder.predict_masks`` repeats one picture for all its prompts. Here prompt n reads
embedding n; the official modules and weights do the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from copick_cryosam.devices import computing_in

__all__ = ["MASKS", "SamDecoder"]

MASKS = 4
"""Masks for each prompt: the single one, then three for prompts that could mean several things."""

_POSITIVE = 1
_LOW_PER_TOKEN = 4


class SamDecoder:
    """Prompts and image embeddings to low-resolution mask logits.

    Parameters
    ----------
    sam : the official ``Sam``, of any size, on its device and in evaluation mode
    dtype : bfloat16 runs transformer and upscaling in it; prompts are encoded and masks summed in fp32 always,
        since in bf16 a coordinate is off by up to a pixel
    """

    def __init__(self, sam: nn.Module, dtype: torch.dtype) -> None:
        official: Any = sam
        self._prompts: Any = official.prompt_encoder
        self._masks: Any = official.mask_decoder
        self._dtype = dtype
        with torch.inference_mode():
            self._positions: Tensor = self._prompts.get_dense_pe()
        self.device = self._positions.device

    @torch.inference_mode()
    def decode(
        self, embeddings: Tensor, points: Tensor, boxes: Tensor | None, boxed: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits, shape (N, 4, 4th, 4tw), and predicted IoUs, (N, 4), not clamped; both float32.

        Parameters
        ----------
        embeddings : shape (N, channels, th, tw)
            Of each prompt's picture, padded to whole tokens or to the square; of a crop, the positions are those
            in the square.
        points : float32, shape (N, 2), x and y of the positive click in pixels of the picture, pixel centres whole
        boxes : float32, shape (N, 4), x and y of the first and the last corner likewise, or None
        boxed : bool, shape (N,), which prompts have a box besides their point; None with `boxes` None
        masks : float32, shape (N, 4th, 4tw), signed logits of the mask before, or None
        """
        if boxes is None or boxed is None or not bool(boxed.any()):
            return self._decode(embeddings, points, None, masks)
        if bool(boxed.all()):
            return self._decode(embeddings, points, boxes, masks)
        # With a box there is a token more than without, so the two kinds cannot share a call and stay exact.
        low = embeddings.new_empty((len(points), MASKS, *self._low_shape(embeddings)), dtype=torch.float32)
        iou = low.new_empty((len(points), MASKS))
        for which, corners in ((boxed, boxes), (~boxed, None)):
            low[which], iou[which] = self._decode(
                embeddings[which],
                points[which],
                None if corners is None else corners[which],
                None if masks is None else masks[which],
            )
        return low, iou

    def _decode(
        self, embeddings: Tensor, points: Tensor, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        decoder = self._masks
        height, width = embeddings.shape[2:]
        sparse, dense = self._encode(points, boxes, masks)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(points), -1, -1)
        tokens = torch.cat([own, sparse], dim=1)
        positions = self._positions[:, :, :height, :width].contiguous()
        with computing_in(self._dtype, self.device):
            # The positions are the same for all and are added by broadcasting.
            out, image = decoder.transformer(embeddings + dense, positions, tokens)
            upscaled = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (height, width)))
            heads = decoder.output_hypernetworks_mlps
            weights = torch.stack([head(out[:, 1 + index]) for index, head in enumerate(heads)], dim=1)
            iou = decoder.iou_prediction_head(out[:, 0])
        low = weights.float() @ upscaled.float().flatten(2)
        return low.unflatten(2, self._low_shape(embeddings)), iou.float()

    def _encode(self, points: Tensor, boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sparse embeddings, shape (N, tokens, channels), and dense ones, (N or 1, channels, th or 1, tw or 1)."""
        labels = torch.full((len(points), 1), _POSITIVE, device=points.device)
        sparse, _ = self._prompts(points=(points[:, None], labels), boxes=boxes, masks=None)
        if masks is None:
            return sparse, self._prompts.no_mask_embed.weight[:, :, None, None]
        return sparse, self._prompts.mask_downscaling(masks[:, None])

    @staticmethod
    def _low_shape(embeddings: Tensor) -> tuple[int, int]:
        return _LOW_PER_TOKEN * embeddings.shape[2], _LOW_PER_TOKEN * embeddings.shape[3]
