"""The image encoder of SAM 2: batches of pictures to features at three resolutions, kept as one vector a picture.

SAM 2 was trained on squares, to which pictures were stretched; here they keep their aspect, in the top left of the
square, with zeros below or beside them, so that a voxel is as wide as it is high.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.config import Precision
from copick_cryosam.devices import compute_dtype, computing_in
from copick_cryosam.foundation.pictures import IMAGENET_MEAN, IMAGENET_STD, in_colours

__all__ = ["Sam2Trunk"]


class Sam2Trunk:
    """Pictures to SAM 2's image features; what `SamPlanes` asks of a trunk.

    Parameters
    ----------
    model : transformers' ``Sam2Model``, of any size; put on `device` and into evaluation mode
    device : where it computes
    precision : bf16 keeps sums, norms and the softmax in fp32; auto is bf16 on GPUs that have it, else fp32
    compile : torch.compile of the encoder

    Attributes
    ----------
    img_size : pixels of the square's edge that the weights were trained at
    patch : pixels of the edge of a coarsest feature
    levels : shapes (channels, height, width) of a picture's features, the finest first
    dtype : float32 or bfloat16, of the computation and of the features
    """

    def __init__(
        self, model: nn.Module, device: torch.device, precision: Precision = "auto", compile: bool = False
    ) -> None:
        self.device = device
        self.model = model.to(device).eval().requires_grad_(False)
        transformers: Any = self.model
        prompts = transformers.config.prompt_encoder_config
        self.img_size, self.patch = int(prompts.image_size), int(prompts.patch_size)
        masks = transformers.mask_decoder
        channels = (masks.conv_s0.out_channels, masks.conv_s1.out_channels, masks.hidden_size)
        # the finest is as wide as the low-resolution masks, four to a coarsest feature
        edges = [self.img_size // self.patch * times for times in (4, 2, 1)]
        self.levels = [(depth, edge, edge) for depth, edge in zip(channels, edges, strict=True)]
        self.dtype = compute_dtype(precision, device)
        self._compiled = compile
        features = transformers.get_image_embeddings
        self._forward = torch.compile(features, dynamic=False) if compile else features
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

    @torch.inference_mode()
    def encode(self, pictures: Tensor, padding: str = "square", batch: int | None = None) -> Tensor:
        """Features of all levels one after the other, shape (N, numbers), of `dtype`; see `unpack`.

        Parameters
        ----------
        pictures : float, shape (N, h, w) or (N, 3, h, w), values 0 to 1
            Grey pictures are repeated as red, green and blue. No side is longer than `img_size`.
        padding : square; there is no other, as a feature's place in the square is learnt
        batch : when compiled, fewer pictures are filled up to so many, so that the shape stays the same

        Raises
        ------
        InputError
            The pictures are larger than `img_size`, or have a number of channels other than 3.
        """
        pictures = in_colours(pictures, self.img_size)
        count, _, height, width = pictures.shape
        normalised = (pictures.to(self.device, torch.float32) - self._mean) / self._std
        filling = max(0, (batch or 0) - count) if self._compiled else 0
        normalised = F.pad(normalised, (0, self.img_size - width, 0, self.img_size - height, 0, 0, 0, filling))
        with computing_in(self.dtype, self.device):
            levels = self._forward(normalised)
        return torch.cat([level[:count].flatten(1).to(self.dtype) for level in levels], dim=1)

    def unpack(self, features: Tensor) -> list[Tensor]:
        """The levels, each of shape (N, channels, height, width), of what `encode` gave for N pictures."""
        parts = torch.split(features, [depth * rows * columns for depth, rows, columns in self.levels], dim=1)
        return [part.view(len(part), *shape) for part, shape in zip(parts, self.levels, strict=True)]
