"""SAM as a plane segmenter: the official weights, prompted on many planes at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.segmenters import Decoded
from copick_cryosam.segmenters.sam_choice import choose
from copick_cryosam.segmenters.sam_decoder import SamDecoder
from copick_cryosam.segmenters.sam_planes import SamPlanes

__all__ = ["SamSegmenter", "load"]

_CPU_PLANES, _CPU_PROMPTS = 1, 4
"""The most that a CPU works on in one call: a larger batch falls out of its caches and is slower."""


class SamSegmenter:
    """SAM behind the `PlaneSegmenter` protocol.

    `Decoded.prompt` are the signed low-resolution logits of the chosen mask, shape (N, 4th, 4tw), which SAM was
    trained to be prompted with; not the mask as zeros and ones, as the published code of CryoSAM does.

    Parameters
    ----------
    sam : the official ``Sam``, of any size; put on `device` and into evaluation mode
    signature : identifies the weights
    settings : see `SegmenterSettings`, the fields of sam
    device : where it computes

    Raises
    ------
    InputError
        `settings.longest_side` is larger than the pictures that the weights were trained at.
    """

    name = "sam"

    def __init__(self, sam: nn.Module, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        self.signature = signature
        self._settings = settings
        self._device = device
        self._trunk = SamTrunk(sam, device, settings.precision, settings.compile)
        self._decoder = SamDecoder(self._trunk.sam, self._trunk.dtype)
        planes = min(settings.encode_batch, _CPU_PLANES) if device.type == "cpu" else settings.encode_batch
        self._batches = Batches(planes, "planes", "segmenter.encode_batch")
        self._longest_side = settings.longest_side or self._trunk.img_size
        if self._longest_side > self._trunk.img_size:
            raise InputError(
                f"segmenter.longest_side: expected at most {self._trunk.img_size}, found {self._longest_side}",
                hint="Leave it out to use the size that the checkpoint was trained at",
            )

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> SamPlanes:
        """See `PlaneSegmenter.embed`; nothing is encoded before a prompt needs it, and the radius plays no part."""
        return SamPlanes(
            volume,
            axis,
            self._trunk,
            self._longest_side,
            self._settings.padding,
            self._settings.channels,
            self._batches,
        )

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
        """See `PlaneSegmenter.decode`; SAM has no presence head, so presence is 1."""
        prompts = None if mask_prompts is None else mask_prompts.to(self._device, torch.float32)
        count = max(1, len(planes))
        at_once = _CPU_PROMPTS if self._device.type == "cpu" else count
        parts = [
            self._decode(
                embeddings,
                planes[some],
                points[some],
                windows[some],
                window,
                None if prompts is None else prompts[some],
            )
            for some in (slice(start, start + at_once) for start in range(0, count, at_once))
        ]
        fields = ("logits", "iou", "presence", "prompt")
        return Decoded(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})

    def _decode(
        self,
        embeddings: SamPlanes,
        planes: Tensor,
        points: Tensor,
        windows: Tensor,
        window: int,
        prompts: Tensor | None,
    ) -> Decoded:
        coordinates = embeddings.geometry.to_picture(points.to(self._device))
        before = None if prompts is None else (prompts > 0) & embeddings.inside
        boxes = boxed = None
        if self._settings.box_prompt and before is not None:
            boxes, boxed = embeddings.geometry.boxes(before)
        low, iou = self._decoder.decode(embeddings.embeddings(planes), coordinates, boxes, boxed, prompts)
        chosen = choose(iou, (low > 0) & embeddings.inside, before, self._settings.mask_choice)
        each = torch.arange(len(chosen), device=chosen.device)
        prompt = low[each, chosen]
        return Decoded(
            logits=embeddings.windows.read(prompt, windows.to(self._device), window),
            iou=iou[each, chosen].clamp(0, 1),
            presence=torch.ones_like(iou[:, 0]),
            prompt=prompt,
        )


def load(settings: SegmenterSettings, device: torch.device) -> SamSegmenter:
    """SAM from the checkpoint that the settings name, or the one found in CRYOSAM_CHECKPOINTS.

    Raises
    ------
    NotFoundError, DataError, InputError
        See `copick_cryosam.foundation.checkpoints.load_sam` and `SamSegmenter`.
    """
    from copick_cryosam.foundation.checkpoints import load_sam

    loaded = load_sam(settings.checkpoint, settings.model)
    return SamSegmenter(loaded.sam, loaded.signature, settings, device)
