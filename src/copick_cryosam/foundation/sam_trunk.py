"""The image encoder of SAM: batches of pictures at their own aspect, with fused attention, from the official weights.

What differs from the official ``ImageEncoderViT.forward`` is how, not what, for square input. A picture that is
not square may be encoded without padding it to a square: then the absolute position embedding is cropped at its
top left and the relative one of the global layers at its centre. Both keep the tokens where they are in the
padded square; the official code would stretch the relative ones. Global layers then no longer see the padding,
which is the one difference to the padded square.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.config import Precision
from copick_cryosam.devices import compute_dtype, computing_in
from copick_cryosam.foundation.pictures import in_colours

__all__ = ["Padding", "SamTrunk", "padded_shape"]

Padding = Literal["native", "square"]

_ALIGNMENT = 8
"""Fused attention on GPUs wants vectors of a multiple of so many half-precision numbers."""


class SamTrunk:
    """Pictures to SAM's image embeddings.

    Parameters
    ----------
    sam : the official ``Sam``, of any size; put on `device` and into evaluation mode
    device : where it computes
    precision : bf16 keeps sums, norms and the softmax in fp32; auto is bf16 on GPUs that have it, else fp32
    compile : torch.compile of the encoder, once for every shape of picture

    Attributes
    ----------
    img_size : pixels of the square's edge that the weights were trained at
    patch : pixels of a token's edge
    channels : channels of the embeddings
    dtype : float32 or bfloat16, of the computation and of the embeddings
    """

    def __init__(
        self, sam: nn.Module, device: torch.device, precision: Precision = "auto", compile: bool = False
    ) -> None:
        self.device = device
        self.sam: Any = sam.to(device).eval().requires_grad_(False)
        encoder: Any = self.sam.image_encoder
        self.img_size = int(encoder.img_size)
        self.patch = int(encoder.patch_embed.proj.kernel_size[0])
        self.channels = int(encoder.neck[0].out_channels)
        self.dtype = compute_dtype(precision, device)
        self._encoder = encoder
        self._compiled = compile
        self._forward = torch.compile(self._embeddings, dynamic=False) if compile else self._embeddings

    @torch.inference_mode()
    def encode(self, pictures: Tensor, padding: Padding = "native", batch: int | None = None) -> Tensor:
        """Image embeddings, shape (N, channels, th, tw), of `dtype`.

        Parameters
        ----------
        pictures : float, shape (N, h, w) or (N, 3, h, w), values 0 to 1
            Grey pictures are repeated as red, green and blue. No side is longer than `img_size`.
        padding : native pads to whole tokens, square to `img_size` x `img_size` as published
        batch : when compiled, fewer pictures are filled up to so many, so that the shape stays the same

        Raises
        ------
        InputError
            The pictures are larger than `img_size`, or have a number of channels other than 3.
        """
        pictures = in_colours(pictures, self.img_size)
        count, _, height, width = pictures.shape
        normalised = (pictures.to(self.device, torch.float32) * 255 - self.sam.pixel_mean) / self.sam.pixel_std
        rows, columns = padded_shape((height, width), self.img_size, self.patch, padding)
        filling = max(0, (batch or 0) - count) if self._compiled else 0
        # Zeros after the normalisation, as the official preprocessing pads.
        normalised = F.pad(normalised, (0, columns - width, 0, rows - height, 0, 0, 0, filling))
        with computing_in(self.dtype, self.device):
            embeddings: Tensor = self._forward(normalised)
        return embeddings[:count].to(self.dtype)

    def _embeddings(self, pictures: Tensor) -> Tensor:
        encoder = self._encoder
        x = encoder.patch_embed(pictures)
        x = x + encoder.pos_embed[:, : x.shape[1], : x.shape[2]]
        for block in encoder.blocks:
            x = _block(block, x)
        x = x.permute(0, 3, 1, 2)
        for layer in encoder.neck:
            # The neck's norms are written out in plain operations and would run in bf16.
            x = layer(x).float()
        embeddings: Tensor = x
        return embeddings


def padded_shape(shape: tuple[int, int], img_size: int, patch: int, padding: Padding) -> tuple[int, int]:
    """Height and width to which a picture of `shape` is padded: whole tokens, or the square."""
    if padding == "square":
        return img_size, img_size
    rows, columns = (-(-side // patch) * patch for side in shape)
    return rows, columns


def _block(block: Any, x: Tensor) -> Tensor:
    """One transformer block, (N, h, w, channels) -> the same; windows are padded with zeros as the official do."""
    attended: Tensor = block.norm1(x)
    size = block.window_size
    if size:
        number, height, width, channels = x.shape
        below, beside = -height % size, -width % size
        down, across = (height + below) // size, (width + beside) // size
        padded = F.pad(attended, (0, 0, 0, beside, 0, below)).reshape(number, down, size, across, size, channels)
        windows = padded.transpose(2, 3).reshape(-1, size, size, channels)
        attended = _attention(block.attn, windows).reshape(number, down, across, size, size, channels)
        attended = attended.transpose(2, 3).reshape(number, height + below, width + beside, channels)
        attended = attended[:, :height, :width]
    else:
        attended = _attention(block.attn, attended)
    x = x + attended
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def _attention(attention: Any, x: Tensor) -> Tensor:
    """Attention with decomposed relative positions as one fused call without a bias tensor; (N, h, w, channels).

    The logit of query i and key j is ``scale * q_i . k_j + rel_h(q_i)[row of j] + rel_w(q_i)[column of j]``,
    which is the dot product of ``[scale * q_i, rel_h(q_i), rel_w(q_i)]`` and ``[k_j, one-hot row, one-hot column]``.
    """
    number, height, width, _ = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).reshape(number, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    grid = q.reshape(number, heads, height, width, -1)
    along_rows = torch.einsum("nahwc,hkc->nahwk", grid, _relative(attention.rel_pos_h, height))
    along_columns = torch.einsum("nahwc,wkc->nahwk", grid, _relative(attention.rel_pos_w, width))
    queries = torch.cat([q * attention.scale, along_rows.flatten(2, 3), along_columns.flatten(2, 3)], dim=-1)

    rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    places = torch.cat([rows, columns], dim=-1).expand(number, heads, -1, -1)
    keys = torch.cat([k, places], dim=-1)

    spare = -queries.shape[-1] % _ALIGNMENT
    queries, keys = F.pad(queries, (0, spare)), F.pad(keys, (0, spare))
    depth = v.shape[-1]
    if x.device.type == "cpu":
        # The CPU's fused kernel wants values as long as the keys; without it there would be a full attention map.
        v = F.pad(v, (0, keys.shape[-1] - depth))
    out = F.scaled_dot_product_attention(queries, keys, v, scale=1.0)[..., :depth]
    projected: Tensor = attention.proj(out.transpose(1, 2).reshape(number, height, width, heads * depth))
    return projected


def _relative(table: Tensor, size: int) -> Tensor:
    """Embeddings of the distances query - key along a side of `size` tokens, shape (size, size, channels).

    `table` holds the distances from -(n-1) to n-1 of the side it was trained at; those needed are at its centre.
    """
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + (len(table) - 1) // 2]
