"""EmbedNet, the embedded encoder, in the role of DINOv2: a small 3D U-Net trained on simulated tomograms.

It returns one feature per cell of 2 x 2 x 2 voxels, a unit vector, and two maps that need no query:
the probability that the cell lies in any particle, and that it lies at a particle's centre.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPACING = 10.0
"""Å per voxel that the net was trained at."""
STRIDE = 2
HALO = 40
"""Voxels of context on each side of a tile; beyond it the net's response falls off (see tests)."""


def _conv(inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = 1 if kernel > 1 else 0
    return nn.Sequential(
        nn.Conv3d(inside, outside, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm3d(outside),
        nn.SiLU(inplace=True),
    )


class _Block(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(self.first(x)))


class EmbedNet(nn.Module):
    """The net. Batch normalisation, not group normalisation: what a voxel gets must not depend on the tile.

    Parameters
    ----------
    channels : feature channels at strides 2, 4, 8 and 16
    dim : length of the embedding
    """

    def __init__(self, channels: tuple[int, int, int, int] = (20, 40, 80, 96), dim: int = 32) -> None:
        super().__init__()
        a, b, c, d = channels
        self.channels, self.dim = channels, dim
        # kernel 4, stride 2: cell i is centred on voxel 2 i + 0.5, as `CellGrid` says
        self.stem = _conv(1, a, kernel=4, stride=2)
        self.at2 = _Block(a)
        self.down4, self.at4 = _conv(a, b, kernel=4, stride=2), _Block(b)
        self.down8, self.at8 = _conv(b, c, kernel=4, stride=2), _Block(c)
        self.down16, self.at16 = _conv(c, d, kernel=4, stride=2), _Block(d)
        self.up8, self.out8 = _conv(d + c, c, kernel=1), _Block(c)
        self.up4, self.out4 = _conv(c + b, b, kernel=1), _Block(b)
        self.up2, self.out2 = _conv(b + a, b, kernel=1), _conv(b, b)
        self.embedding = nn.Conv3d(b, dim, 1)
        self.maps = nn.Conv3d(b, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volume (N, 1, Z, Y, X), edges divisible by 16 -> unit embeddings (N, dim, Z/2, Y/2, X/2), and the
        logits of foreground and centre (N, 2, Z/2, Y/2, X/2)."""
        s2 = self.at2(self.stem(x))
        s4 = self.at4(self.down4(s2))
        s8 = self.at8(self.down8(s4))
        s16 = self.at16(self.down16(s8))
        u8 = self.out8(self.up8(torch.cat([_grow(s16, s8), s8], dim=1)))
        u4 = self.out4(self.up4(torch.cat([_grow(u8, s4), s4], dim=1)))
        u2 = self.out2(self.up2(torch.cat([_grow(u4, s2), s2], dim=1)))
        return F.normalize(self.embedding(u2), dim=1), self.maps(u2)


def _grow(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)
