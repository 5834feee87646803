"""SAM 2's prompt encoder and mask decoder for a batch in which every prompt lies on a picture of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from copick_cryosam.devices import computing_in

__all__ = ["Sam2Decoder"]

_PROMPT_LIMIT = 32.0
"""Logits of a mask prompt are clamped to plus and minus this, as in the official ``SAM2ImagePredictor``."""


class Sam2Decoder:
    """Prompts and image features to low-resolution mask logits.

    Parameters
    ----------
    model : transformers' ``Sam2Model``, of any size, on its device and in evaluation mode
    dtype : bfloat16 runs the mask decoder in it; prompts are encoded in fp32 always, since in bf16 a coordinate is
        off by up to a pixel
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        transformers: Any = model
        self._prompts: Any = transformers.prompt_encoder
        self._masks: Any = transformers.mask_decoder
        self._dtype = dtype
        with torch.inference_mode():
            self._positions: Tensor = transformers.get_image_wide_positional_embeddings()

    @torch.inference_mode()
    def decode(
        self,
        features: list[Tensor],
        points: Tensor,
        boxes: Tensor | None,
        boxed: Tensor | None,
        masks: Tensor | None,
        several: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Low-resolution logits, (N, M, h, w), predicted IoUs, (N, M), and probability of an object, (N,); float32.

        M is 3 with `several` and 1 otherwise: then the single mask, or where that one is unstable the best of the
        three, as the official model does.

        Parameters
        ----------
        features : of each prompt's picture, three of shape (N, channels, height, width), the finest first
        points : float32, shape (N, 2), x and y of the positive click in pixels of the picture, pixel centres whole
        boxes : float32, shape (N, 4), x and y of the first and the last corner likewise, or None
        boxed : bool, shape (N,), which prompts have a box besides their point; None with `boxes` None
        masks : float32, shape (N, h, w), signed logits of the mask before, or None
        several : three masks for prompts that could mean several things, instead of one
        """
        if boxes is None or boxed is None or not bool(boxed.any()):
            return self._decode(features, points, None, masks, several)
        if bool(boxed.all()):
            return self._decode(features, points, boxes, masks, several)
        # With a box there are tokens more than without, so the two kinds cannot share a call and stay exact.
        kinds = []
        for which, corners in ((boxed, boxes), (~boxed, None)):
            box, mask = (None if values is None else values[which] for values in (corners, masks))
            kinds.append(self._decode([level[which] for level in features], points[which], box, mask, several))
        back = torch.cat([boxed.nonzero()[:, 0], (~boxed).nonzero()[:, 0]]).argsort()
        low, iou, presence = (torch.cat(both)[back] for both in zip(*kinds, strict=True))
        return low, iou, presence

    def _decode(
        self, features: list[Tensor], points: Tensor, boxes: Tensor | None, masks: Tensor | None, several: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        sparse, dense = self._prompts(
            input_points=points[:, None, None],
            input_labels=torch.ones((len(points), 1, 1), dtype=torch.int, device=points.device),
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if masks is None else masks[:, None].clamp(-_PROMPT_LIMIT, _PROMPT_LIMIT),
        )
        with computing_in(self._dtype, points.device):
            # The positions are the same for all and are added by broadcasting.
            low, iou, _, objects = self._masks(
                image_embeddings=features[-1],
                image_positional_embeddings=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
                high_resolution_features=features[:-1],
            )
        # one prompt for each picture
        return low[:, 0].float(), iou[:, 0].float(), objects[:, 0, 0].float().sigmoid()
