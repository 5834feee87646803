"""What SAM and SAM 2 share as plane segmenters: planes encoded on demand, prompts, and the choice of a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.foundation.sam_trunk import Padding
from copick_cryosam.segmenters import Decoded
from copick_cryosam.segmenters.sam_choice import choose
from copick_cryosam.segmenters.sam_planes import SamPlanes

__all__ = ["PromptedSam"]

_FIELDS = ("logits", "iou", "presence", "prompt")


class PromptedSam(ABC):
    """A SAM behind the `PlaneSegmenter` protocol.

    `Decoded.prompt` are the signed low-resolution logits of the chosen mask, which SAM was trained to be prompted
    with; not the mask as zeros and ones, as the published code of CryoSAM does.

    Parameters
    ----------
    trunk : encodes pictures, see `SamTrunk`; SAM 2's offers what the planes ask of it
    signature : identifies the weights
    settings : see `SegmenterSettings`, the fields of sam and sam2
    device : where it computes

    Raises
    ------
    InputError
        `settings.longest_side` is larger than the pictures that the weights were trained at.
    """

    planes_on_cpu: int | None = None
    prompts_on_cpu: int | None = None
    """The most that a CPU works on in one call, where a larger batch was measured to be slower."""

    def __init__(self, trunk: Any, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        self.signature = signature
        self._settings = settings
        self._device = device
        self._trunk = trunk
        planes = settings.encode_batch
        if device.type == "cpu" and self.planes_on_cpu is not None:
            planes = min(planes, self.planes_on_cpu)
        self._batches = Batches(planes, "planes", "segmenter.encode_batch")
        self._longest_side = settings.longest_side or trunk.img_size
        if self._longest_side > trunk.img_size:
            raise InputError(
                f"segmenter.longest_side: expected at most {trunk.img_size}, found {self._longest_side}",
                hint="Leave it out to use the size that the checkpoint was trained at",
            )

    @property
    def _padding(self) -> Padding:
        return self._settings.padding

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> SamPlanes:
        """See `PlaneSegmenter.embed`; nothing is encoded before a prompt needs it, and the radius plays no part."""
        channels = self._settings.channels
        return SamPlanes(volume, axis, self._trunk, self._longest_side, self._padding, channels, self._batches)

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
        most = self.prompts_on_cpu
        if self._device.type == "cpu" and most is not None and len(planes) > most:
            parts = [
                self.decode(
                    embeddings,
                    planes[some],
                    points[some],
                    windows[some],
                    window,
                    None if mask_prompts is None else mask_prompts[some],
                )
                for some in (slice(start, start + most) for start in range(0, len(planes), most))
            ]
            return Decoded(**{name: torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS})
        prompts = None if mask_prompts is None else mask_prompts.to(self._device, torch.float32)
        coordinates = embeddings.geometry.to_picture(points.to(self._device))
        before = None if prompts is None else (prompts > 0) & embeddings.inside
        boxes = boxed = None
        if self._settings.box_prompt and before is not None:
            boxes, boxed = embeddings.geometry.boxes(before)
        low, iou, presence = self._masks(embeddings.embeddings(planes), coordinates, boxes, boxed, prompts)
        chosen = self._choose(iou, (low > 0) & embeddings.inside, before)
        each = torch.arange(len(chosen), device=chosen.device)
        prompt = low[each, chosen]
        return Decoded(
            logits=embeddings.windows.read(prompt, windows.to(self._device), window),
            iou=iou[each, chosen].clamp(0, 1),
            presence=presence,
            prompt=prompt,
        )

    @abstractmethod
    def _masks(
        self, vectors: Tensor, points: Tensor, boxes: Tensor | None, boxed: Tensor | None, prompts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Low-resolution logits (N, M, h, w) and predicted IoUs (N, M) of M masks, and presence (N,).

        Parameters
        ----------
        vectors : the planes' embeddings, as the trunk gives them
        points : shape (N, 2), in pixels of the picture
        boxes, boxed : boxes around the masks before, and which prompts have one
        prompts : the logits before
        """

    def _choose(self, iou: Tensor, masks: Tensor, before: Tensor | None) -> Tensor:
        """Index of the mask to take, int64, shape (N,), among those that were decoded."""
        return choose(iou, masks, before, self._settings.mask_choice)
