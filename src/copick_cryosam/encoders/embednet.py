"""EmbedNet, the embedded encoder, in the role of DINOv2: a small 3D U-Net trained on simulated tomograms.

It returns one feature per cell of 2 x 2 x 2 voxels, a unit vector, and two maps that need no query:
the probability that the cell lies in any particle, and that it lies at a particle's centre.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from copick_cryosam.config import HALO, EncoderSettings
from copick_cryosam.contrast import smooth, standardise
from copick_cryosam.devices import computing_in, fastest_dtype
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.types import Progress, Slices3, Volume

SPACING = 10.0
"""Å per voxel that the net was trained at."""
RESAMPLE_FROM = 1.15
"""Voxel spacings within this factor of the net's are taken as they are."""
STRIDE = 2
HALF_TURNS = ((), (3, 4), (2, 4), (2, 3))
"""Axes of (N, 1, Z, Y, X) that are reversed: as it is, and turned by half about z, y and x. None of these mirrors a
particle, and the missing wedge of tilts that reach as far to either side stays where it is."""


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
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))

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
        return self.heads(self.trunk(x))

    def heads(self, u2: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, from the trunk's features."""
        return F.normalize(self.embedding(u2), dim=1), self.maps(u2)

    def contract(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of the four levels on the way down, strides 2, 4, 8 and 16; `channels` of them."""
        s2 = self.at2(self.stem(x))
        s4 = self.at4(self.down4(s2))
        s8 = self.at8(self.down8(s4))
        # on a CPU, bf16 convolutions of a few voxels may take their gradients from memory that nobody wrote
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and x.device.type != "cpu"):
            s16 = self.at16(self.down16(s8.float() if x.device.type == "cpu" else s8))
        return s2, s4, s8, s16

    def trunk(self, x: Tensor) -> Tensor:
        """Features that the heads share: (N, 1, Z, Y, X) -> (N, channels[1], Z/2, Y/2, X/2)."""
        s2, s4, s8, s16 = self.contract(x)
        u8 = self.out8(self.up8(torch.cat([_grow(s16, s8), s8], dim=1)))
        u4 = self.out4(self.up4(torch.cat([_grow(u8, s4), s4], dim=1)))
        u2: Tensor = self.out2(self.up2(torch.cat([_grow(u4, s2), s2], dim=1)))
        return u2


def _grow(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)


class EmbedNetEncoder:
    """EmbedNet behind the `Encoder` protocol: the tomogram in tiles, each with a halo."""

    name = "embednet"
    recognises_particles = True

    def __init__(self, net: EmbedNet, signature: str, settings: EncoderSettings, device: torch.device) -> None:
        # features of more or fewer turns are others
        self.signature = signature if settings.turns == 1 else f"{signature}-{settings.turns}turns"
        self._tile = settings.tile
        self._turns = HALF_TURNS[: settings.turns]
        self._device = device
        self._dtype = fastest_dtype(settings.precision, device)
        self._net = net.to(device).eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(
        self, volume: Volume, *, voxel_spacing: float | None = None, progress: Progress | None = None
    ) -> DenseFeatures:
        """See `Encoder.encode`. A tomogram of another voxel spacing is resampled to the net's 10 Å."""
        whole = np.asarray(volume[:, :, :], dtype=np.float32)
        scale = 1.0 if voxel_spacing is None else SPACING / voxel_spacing
        if abs(np.log(scale)) > np.log(RESAMPLE_FROM):
            # Averaging voxels takes noise away, and the net knows tomograms of unit variance.
            whole = standardise(resample(whole, scale))
        stride = tuple(STRIDE * n / m for n, m in zip(volume.shape, whole.shape, strict=True))
        extent = (volume.shape[0], volume.shape[1], volume.shape[2])
        cells = tuple(-(-n // STRIDE) for n in whole.shape)
        values = torch.empty((self._net.dim, *cells), dtype=torch.float16)
        maps = torch.empty((2, *cells), dtype=torch.float32)
        tiles = list(tiles_of(whole.shape, self._tile))
        for done, tile in enumerate(tiles):
            embedding, logits = self._encode_tile(whole, tile)
            values[(slice(None), *tile.cells)] = embedding
            maps[(slice(None), *tile.cells)] = logits
            if progress is not None:
                progress("encode", done + 1, len(tiles))
        maps.sigmoid_()
        return DenseFeatures(
            values=values.to(self._device),
            grid=CellGrid((cells[0], cells[1], cells[2]), (stride[0], stride[1], stride[2]), extent),
            foreground=maps[0].numpy(),
            centre=maps[1].numpy(),
        )

    @torch.inference_mode()
    def _encode_tile(self, whole: NDArray[np.float32], tile: Tile) -> tuple[Tensor, Tensor]:
        block = np.zeros(tile.padded, dtype=np.float32)
        block[tile.into] = whole[tile.read]
        x = torch.from_numpy(block)[None, None].to(self._device).contiguous(memory_format=torch.channels_last_3d)
        x = x.clamp(-5, 5)
        own = (slice(None), slice(None), *tile.owned)
        embeddings, logits = torch.zeros(()), torch.zeros(())
        for axes in self._turns:
            with computing_in(self._dtype, self._device):
                u2 = self._net.trunk(x.flip(axes).contiguous(memory_format=torch.channels_last_3d))
            # the heads look at single cells: those around the tile are not asked
            embedding, maps = self._net.heads(u2.flip(axes)[own].float())
            del u2
            embeddings, logits = embeddings + embedding.cpu(), logits + maps.cpu() / len(self._turns)
        return F.normalize(embeddings, dim=1)[0].half(), logits[0]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A block that the net sees at once. The owned cells of all tiles cover the volume exactly once.

    Attributes
    ----------
    read : voxels of the tomogram that are read
    into : where they go in the block; the rest of it is 0, the mean
    padded : shape of the block, divisible by 16
    owned : cells of the block whose result is kept
    cells : where they go in the features
    """

    read: Slices3
    into: Slices3
    padded: tuple[int, int, int]
    owned: Slices3
    cells: Slices3


def tiles_of(shape: tuple[int, ...], tile: int, halo: int = HALO) -> Iterator[Tile]:
    """Cut a volume into tiles of `tile` voxels and `halo` voxels of context, both multiples of 16."""
    for corner in itertools.product(*(range(0, n, tile) for n in shape)):
        read, into, padded, owned, cells = [], [], [], [], []
        for start, size in zip(corner, shape, strict=True):
            stop = min(start + tile, size)
            low, high = max(start - halo, 0), min(stop + halo, size)
            read.append(slice(low, high))
            into.append(slice(0, high - low))
            padded.append(-(-(high - low) // 16) * 16)
            # start and low are even: voxel 2 i is the first of cell i
            first, count = (start - low) // STRIDE, -(-stop // STRIDE) - start // STRIDE
            owned.append(slice(first, first + count))
            cells.append(slice(start // STRIDE, start // STRIDE + count))
        yield Tile(
            read=(read[0], read[1], read[2]),
            into=(into[0], into[1], into[2]),
            padded=(padded[0], padded[1], padded[2]),
            owned=(owned[0], owned[1], owned[2]),
            cells=(cells[0], cells[1], cells[2]),
        )


def resample(volume: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """The volume with voxels `scale` times as large; averages where it shrinks, so that noise does not alias."""
    shape = tuple(max(16, round(n / scale)) for n in volume.shape)
    x = torch.from_numpy(volume)[None, None]
    if scale > 1:
        x = torch.from_numpy(smooth(volume, 0.35 * scale))[None, None]
    return np.ascontiguousarray(F.interpolate(x, size=shape, mode="trilinear", align_corners=False)[0, 0].numpy())


def load(settings: EncoderSettings, device: torch.device) -> EmbedNetEncoder:
    """The shipped EmbedNet (see the model card beside its weights)."""
    from copick_cryosam.weights import load_weights

    net = EmbedNet()
    signature = load_weights("embednet", net)
    return EmbedNetEncoder(net, signature, settings, device)
