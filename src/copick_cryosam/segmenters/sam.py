"""SAM as a plane segmenter: the official weights, prompted on many planes at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.segmenters.sam_decoder import SamDecoder
from copick_cryosam.segmenters.sam_prompted import PromptedSam

__all__ = ["SamSegmenter", "load"]


class SamSegmenter(PromptedSam):
    """See `PromptedSam`. SAM has no presence head, so presence is 1.

    Parameters
    ----------
    sam : the official ``Sam``, of any size; put on `device` and into evaluation mode
    """

    name = "sam"
    # a larger batch falls out of a CPU's caches
    planes_on_cpu, prompts_on_cpu = 1, 4

    def __init__(self, sam: nn.Module, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        trunk = SamTrunk(sam, device, settings.precision, settings.compile)
        super().__init__(trunk, signature, settings, device)
        self._decoder = SamDecoder(trunk.sam, trunk.dtype)

    def _masks(
        self, vectors: Tensor, points: Tensor, boxes: Tensor | None, boxed: Tensor | None, prompts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, iou = self._decoder.decode(vectors, points, boxes, boxed, prompts)
        return low, iou, torch.ones_like(iou[:, 0])


def load(settings: SegmenterSettings, device: torch.device) -> SamSegmenter:
    """SAM from the checkpoint that the settings name, or the one found in CRYOSAM_CHECKPOINTS.

    Raises
    ------
    NotFoundError, DataError, InputError
        See `copick_cryosam.foundation.checkpoints.load_sam` and `PromptedSam`.
    """
    from copick_cryosam.foundation.checkpoints import load_sam

    loaded = load_sam(settings.checkpoint, settings.model)
    return SamSegmenter(loaded.sam, loaded.signature, settings, device)
