"""SAM 2 (and 2.1) on pictures as a plane segmenter, through transformers: prompted on many planes at once.

Its memory, which follows an object through a video, is not used: cross-plane self-prompting takes that part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.foundation.sam_trunk import Padding
from copick_cryosam.segmenters.sam2_decoder import Sam2Decoder
from copick_cryosam.segmenters.sam2_trunk import Sam2Trunk
from copick_cryosam.segmenters.sam_choice import choose
from copick_cryosam.segmenters.sam_prompted import PromptedSam

__all__ = ["Sam2Segmenter", "load"]


class Sam2Segmenter(PromptedSam):
    """See `PromptedSam`. Presence is SAM 2's own prediction that there is an object.

    Parameters
    ----------
    model : transformers' ``Sam2Model``, of any size; put on `device` and into evaluation mode
    """

    name = "sam2"

    def __init__(self, model: nn.Module, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        trunk = Sam2Trunk(model, device, settings.precision, settings.compile)
        super().__init__(trunk, signature, settings, device)
        self._decoder = Sam2Decoder(trunk.model, trunk.dtype)

    @property
    def _padding(self) -> Padding:
        return "square"  # a feature's place in the square is learnt

    def _masks(
        self, vectors: Tensor, points: Tensor, boxes: Tensor | None, boxed: Tensor | None, prompts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        several = self._settings.mask_choice != "single"
        return self._decoder.decode(self._trunk.unpack(vectors), points, boxes, boxed, prompts, several)

    def _choose(self, iou: Tensor, masks: Tensor, before: Tensor | None) -> Tensor:
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
        See `copick_cryosam.foundation.sam2_model.load_sam2` and `PromptedSam`.
    """
    from copick_cryosam.foundation.sam2_model import load_sam2

    loaded = load_sam2(settings.checkpoint)
    return Sam2Segmenter(loaded.model, loaded.signature, settings, device)
