"""SAM 2 (and 2.1) on pictures as a plane segmenter, through transformers: prompted on many planes at once.

Its memory, which follows an object through a video, is not used: cross-plane self-prompting takes that part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.segmenters import Decoded
from copick_cryosam.segmenters.sam2_decoder import Sam2Decoder
from copick_cryosam.segmenters.sam2_trunk import Sam2Trunk
from copick_cryosam.segmenters.sam_choice import choose
from copick_cryosam.segmenters.sam_planes import SamPlanes

__all__ = ["Sam2Segmenter", "load"]


class Sam2Segmenter:
    """SAM 2 behind the `PlaneSegmenter` protocol; planes, windows, boxes and the choice of a mask are those of SAM.

    `Decoded.prompt` are the signed low-resolution logits of the chosen mask, shape (N, h, w), and `Decoded.presence`
    is SAM 2's own prediction that there is an object. Planes are padded to a square always.

    Parameters
    ----------
    model : transformers' ``Sam2Model``, of any size; put on `device` and into evaluation mode
    signature : identifies the weights
    settings : see `SegmenterSettings`, the fields of sam2
    device : where it computes

    Raises
    ------
    InputError
        `settings.longest_side` is larger than the pictures that the weights were trained at.
    """

    name = "sam2"

    def __init__(self, model: nn.Module, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        self.signature = signature
        self._settings = settings
        self._device = device
        self._trunk = Sam2Trunk(model, device, settings.precision, settings.compile)
        self._decoder = Sam2Decoder(self._trunk.model, self._trunk.dtype)
        self._batches = Batches(settings.encode_batch, "planes", "segmenter.encode_batch")
        self._longest_side = settings.longest_side or self._trunk.img_size
        if self._longest_side > self._trunk.img_size:
            raise InputError(
                f"segmenter.longest_side: expected at most {self._trunk.img_size}, found {self._longest_side}",
                hint="Leave it out to use the size that the checkpoint was trained at",
            )

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> SamPlanes:
        """See `PlaneSegmenter.embed`; nothing is encoded before a prompt needs it, and the radius plays no part."""
        # It offers what the planes ask of SAM's trunk; they hold its vectors without looking into them.
        trunk: Any = self._trunk
        return SamPlanes(volume, axis, trunk, self._longest_side, "square", self._settings.channels, self._batches)

    @torch.inference_mode()
    def decode(
        self,
        embeddings: SamPlanes,
        planes: Tensor,
        points: Tensor,
        windows: Tensor,
        window: int,
        mask_prompts: Tensor | None,
    ) -> Decoded:
        """See `PlaneSegmenter.decode`."""
        coordinates = embeddings.geometry.to_picture(points.to(self._device))
        prompts = None if mask_prompts is None else mask_prompts.to(self._device, torch.float32)
        before = None if prompts is None else (prompts > 0) & embeddings.inside
        boxes = boxed = None
        if self._settings.box_prompt and before is not None:
            boxes, boxed = embeddings.geometry.boxes(before)
        features = self._trunk.unpack(embeddings.embeddings(planes))
        several = self._settings.mask_choice != "single"
        low, iou, presence = self._decoder.decode(features, coordinates, boxes, boxed, prompts, several)
        chosen = self._choose(iou, (low > 0) & embeddings.inside, before)
        each = torch.arange(len(chosen), device=chosen.device)
        prompt = low[each, chosen]
        return Decoded(
            logits=embeddings.windows.read(prompt, windows.to(self._device), window),
            iou=iou[each, chosen].clamp(0, 1),
            presence=presence,
            prompt=prompt,
        )

    def _choose(self, iou: Tensor, masks: Tensor, before: Tensor | None) -> Tensor:
        """Index of the mask to take, int64, shape (N,), among those that were decoded."""
        choice = self._settings.mask_choice
        if choice == "single":
            return choose(iou, masks, before, choice)
        # SAM's first mask is the single one, which SAM 2 does not decode together with the other three.
        return choose(F.pad(iou, (1, 0)), F.pad(masks, (0, 0, 0, 0, 1, 0)), before, choice) - 1


def load(settings: SegmenterSettings, device: torch.device) -> Sam2Segmenter:
    """SAM 2 from what the settings name as checkpoint.

    Raises
    ------
    NotFoundError, DataError, InputError
        See `copick_cryosam.foundation.sam2_model.load_sam2` and `Sam2Segmenter`.
    """
    from copick_cryosam.foundation.sam2_model import load_sam2

    loaded = load_sam2(settings.checkpoint)
    return Sam2Segmenter(loaded.model, loaded.signature, settings, device)
