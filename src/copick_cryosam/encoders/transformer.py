"""DINO, DINOv2 and DINOv3 as trunks: pictures of planes in, tokens of their patches out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from copick_cryosam.config import Precision
from copick_cryosam.devices import compute_dtype, computing_in
from copick_cryosam.foundation.pictures import IMAGENET_MEAN, IMAGENET_STD
from copick_cryosam.foundation.transformer import LoadedTransformer

__all__ = ["TransformerTrunk"]


class TransformerTrunk:
    """A vision transformer on pictures of any whole number of patches, whatever size it was trained at.

    Position embeddings are interpolated by transformers itself, as each model was made for (DINOv3 has none: it
    rotates queries and keys).

    Parameters
    ----------
    loaded : put on `device`
    device : where it computes
    precision : bf16 keeps sums, norms and the softmax in float32; auto is bf16 on GPUs that have it, else float32
    compile : torch.compile, once for every shape of picture
    """

    def __init__(self, loaded: LoadedTransformer, device: torch.device, precision: Precision, compile: bool) -> None:
        self.patch, self.channels = loaded.patch, loaded.channels
        self._prefix = loaded.prefix
        self._device = device
        self._dtype = compute_dtype(precision, device)
        model: Any = loaded.model.to(device)
        # the others always interpolate
        self._options = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
        self._model = torch.compile(model, dynamic=False) if compile else model
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def picture_shape(self, plane: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
        """Pixels of a plane's picture: its own aspect, rounded to whole patches, at least one on each side.

        Parameters
        ----------
        plane : height and width, voxels
        longest_side : pixels of the longer side; None: one pixel per voxel
        """
        scale = 1.0 if longest_side is None else longest_side / max(plane)
        height, width = (max(1, int(side * scale / self.patch + 0.5)) * self.patch for side in plane)
        return height, width

    def stride(self, plane: tuple[int, int], picture: tuple[int, int]) -> tuple[float, float]:
        """Voxels per token, down and across."""
        height, width = (voxels * self.patch / pixels for voxels, pixels in zip(plane, picture, strict=True))
        return height, width

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Tokens of the patches, float32, shape (N, h, w, C); those of class and registers are left out.

        Parameters
        ----------
        pictures : float, shape (N, H, W), values 0 to 1, whole numbers of patches
        """
        colours = (pictures.to(self._device)[:, None].float() - self._mean) / self._std
        with computing_in(self._dtype, self._device):
            found = self._model(pixel_values=colours, **self._options).last_hidden_state
        height, width = (side // self.patch for side in pictures.shape[1:])
        tokens: Tensor = found[:, self._prefix :].float()
        return tokens.reshape(len(pictures), height, width, self.channels)
