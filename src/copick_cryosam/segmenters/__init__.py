"""Plane segmenters take the role of SAM: a prompt on a plane gives a mask on that plane (eq. 1).

A backend is a module with a factory, named in `_BACKENDS` and imported on use. Cross-plane
self-prompting (`cross_plane.py`) drives every backend alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.registry import create

__all__ = ["Decoded", "PlaneSegmenter", "available_segmenters", "load_segmenter"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoded:
    """What a segmenter says of N prompts, each on a plane of its own.

    Attributes
    ----------
    logits : float, shape (N, window, window)
        Mask logits on the prompt's window, one per voxel of the plane; over 0 is inside. Voxels of the
        window that lie outside the plane are negative.
    iou : float, shape (N,)
        Predicted IoU of the mask with the true one, 0 to 1.
    presence : float, shape (N,)
        Probability that the object is in this plane at all, 0 to 1; 1 where a segmenter has no such head.
    prompt : float, shape (N, ...)
        The mask in the form that this segmenter wants back as `mask_prompts` for the next plane.
    """

    logits: Tensor
    iou: Tensor
    presence: Tensor
    prompt: Tensor


class PlaneSegmenter(Protocol):
    """What every plane segmenter offers."""

    name: str
    signature: str

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> Any:
        """Prepare the planes of `volume` across `axis` for prompting.

        Parameters
        ----------
        volume : float32, shape (Z, Y, X)
            Standardised (mean 0, standard deviation 1), particles brighter than their surroundings.
        axis : 0, 1 or 2
            Plane p is ``volume.select(axis, p)``; its rows and columns are the other two axes in order.
        radius_vox : voxels
            Radius of the object; a segmenter may choose its scale by it.

        Returns
        -------
        The segmenter's own embeddings, cheap to make where planes are encoded lazily.
        """
        ...

    def decode(
        self,
        embeddings: Any,
        planes: Tensor,
        points: Tensor,
        windows: Tensor,
        window: int,
        mask_prompts: Tensor | None,
    ) -> Decoded:
        """Masks for N prompts, each on any plane of `embeddings`.

        Parameters
        ----------
        planes : int64, shape (N,)
            Index of each prompt's plane along the axis.
        points : float32, shape (N, 2)
            The positive click in voxels of the plane (row, column).
        windows : int64, shape (N, 2)
            First row and column of each prompt's window; may lie outside the plane.
        window : edge of the window in voxels
        mask_prompts : `Decoded.prompt` of the neighbouring plane, rows as the prompts here; None on the first plane.
        """
        ...


_BACKENDS = {
    "promptnet": "copick_cryosam.segmenters.promptnet:load",
    "sam": "copick_cryosam.segmenters.sam:load",
    "sam2": "copick_cryosam.segmenters.sam2:load",
    "fake": "copick_cryosam.segmenters.fake:load",
}


def available_segmenters() -> list[str]:
    """Names that `load_segmenter` knows."""
    return sorted(_BACKENDS)


def load_segmenter(settings: SegmenterSettings, device: torch.device) -> PlaneSegmenter:
    """The segmenter that the settings name, on `device`.

    Raises
    ------
    InputError
        No such segmenter; the message names the ones there are.
    """
    loaded: PlaneSegmenter = create("segmenter", _BACKENDS, settings.name, settings, device)
    return loaded
