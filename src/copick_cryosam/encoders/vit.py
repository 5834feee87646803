"""Vision transformers as encoders: the planes across z, y and x, one by one, into tokens (eq. 3).

Planes keep their own aspect; nothing is padded to a square or squashed into one. Features come as
`TokenFeatures`, which never become dense.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import EncoderSettings
from copick_cryosam.encoders.transformer import TransformerTrunk
from copick_cryosam.encoders.whitening import whiten
from copick_cryosam.errors import DeviceError, InputError
from copick_cryosam.foundation.checkpoints import load_sam
from copick_cryosam.foundation.pictures import Intensities, planes_of, resize, scaled_shape
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.foundation.transformer import load_transformer
from copick_cryosam.token_features import TokenFeatures
from copick_cryosam.types import Progress, Volume

__all__ = ["PlaneEncoder", "SamTokens", "Trunk", "load", "load_sam_encoder"]

_LARGEST = torch.finfo(torch.float16).max


class Trunk(Protocol):
    """What turns pictures of planes into tokens."""

    channels: int

    def picture_shape(self, plane: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
        """Pixels of the picture of a plane of so many voxels, height and width."""
        ...

    def stride(self, plane: tuple[int, int], picture: tuple[int, int]) -> tuple[float, float]:
        """Voxels per token, down and across."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (N, H, W) of values 0 to 1 -> tokens (N, h, w, C)."""
        ...


class SamTokens:
    """The image encoder of SAM as a trunk; its tokens are what SAM's mask decoder sees.

    A last token may hang over the picture, where SAM pads.
    """

    def __init__(self, trunk: SamTrunk) -> None:
        self.channels = trunk.channels
        self._trunk = trunk

    def picture_shape(self, plane: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
        """See `Trunk.picture_shape`; SAM was trained on a longer side of 1024 pixels, however few the voxels."""
        return scaled_shape(plane, longest_side or self._trunk.img_size)

    def stride(self, plane: tuple[int, int], picture: tuple[int, int]) -> tuple[float, float]:
        """See `Trunk.stride`."""
        height, width = (voxels * self._trunk.patch / pixels for voxels, pixels in zip(plane, picture, strict=True))
        return height, width

    def encode(self, pictures: Tensor) -> Tensor:
        """See `Trunk.encode`."""
        return self._trunk.encode(pictures).permute(0, 2, 3, 1)


class PlaneEncoder:
    """A trunk behind the `Encoder` protocol.

    Whitening, where it is asked for, takes its statistics from each tomogram; features of several tomograms are
    comparable as far as these agree.
    """

    recognises_particles = False

    def __init__(
        self, name: str, signature: str, trunk: Trunk, settings: EncoderSettings, device: torch.device
    ) -> None:
        self.name = name
        self.signature = signature
        self._trunk = trunk
        self._settings = settings
        self._device = device

    def encode(
        self, volume: Volume, *, voxel_spacing: float | None = None, progress: Progress | None = None
    ) -> TokenFeatures:
        """See `Encoder.encode`; pictures are in pixels per voxel, so the voxel spacing does not matter.

        Raises
        ------
        DeviceError
            Memory ran out, and again with half as many planes at a time.
        """
        values = np.require(volume[:, :, :], dtype=np.float32, requirements=["C", "W"])
        whole = torch.from_numpy(values).to(self._device)
        extent = (whole.shape[0], whole.shape[1], whole.shape[2])
        intensities = Intensities.of(whole)
        batches = Batches(self._settings.batch, "planes", "encoder.batch")
        tokens, strides, encoded = [], [], itertools.count(1)
        tell = progress or _silent
        for axis in range(3):
            height, width = (n for other, n in enumerate(extent) if other != axis)
            shape = self._trunk.picture_shape((height, width), self._settings.longest_side)
            strides.append(self._trunk.stride((height, width), shape))
            view: Tensor | None = None
            for planes, found in self._batches(whole, axis, shape, intensities, batches):
                if view is None:
                    view = self._room((extent[axis], *found.shape[1:]))
                view[planes] = found
                for _ in range(len(found)):
                    tell("encode", next(encoded), sum(extent))
            assert view is not None
            whiten(view, self._settings.whitening)
            tokens.append(view)
        return TokenFeatures.of_volume(tokens, strides, extent, self._settings.stride)

    def _batches(
        self, whole: Tensor, axis: int, shape: tuple[int, int], intensities: Intensities, batches: Batches
    ) -> Iterator[tuple[slice, Tensor]]:
        """The tokens of the planes across an axis, batch by batch: which planes, and float16 (n, h, w, C)."""

        def work(batch: slice) -> tuple[slice, Tensor]:
            planes = planes_of(whole, axis, torch.arange(batch.start, batch.stop))
            pictures = resize(intensities.to_unit(planes), shape)
            if self._settings.compile:
                # a compiled trunk is made anew for every number of pictures
                pictures = pictures[torch.arange(batches.size).clamp(max=len(planes) - 1)]
            # Trunks end with a layer norm, which keeps values to some hundreds, far inside float16's 65504;
            # the clamp makes sure that no odd checkpoint puts an infinity into every similarity.
            tokens = self._trunk.encode(pictures)[: len(planes)].clamp(-_LARGEST, _LARGEST)
            return batch, tokens.half()

        yield from batches.run(whole.shape[axis], work)

    def _room(self, shape: tuple[int, ...]) -> Tensor:
        try:
            return torch.empty(shape, dtype=torch.float16, device=self._device)
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"memory: expected room for {2 * math.prod(shape) / 1e9:.1f} GB of tokens, found too little",
                hint="Set encoder.longest_side to less, choose a smaller model, or free memory on the device",
            ) from None


def _silent(stage: str, done: int, total: int) -> None:
    """The progress that nobody wants to hear of."""


def load(settings: EncoderSettings, device: torch.device) -> PlaneEncoder:
    """The vision transformer that `settings.name` names; errors are those of `load_transformer`."""
    loaded = load_transformer(settings.name, settings.revision)
    trunk = TransformerTrunk(loaded, device, settings.precision, settings.compile)
    return PlaneEncoder(loaded.name, loaded.signature, trunk, settings, device)


def load_sam_encoder(settings: EncoderSettings, device: torch.device) -> PlaneEncoder:
    """The image encoder of the SAM checkpoint `settings.checkpoint`.

    Raises
    ------
    InputError
        `settings.longest_side` is more than the weights were trained at.
    NotFoundError, DataError
        As of `load_sam`.
    """
    loaded = load_sam(settings.checkpoint)
    trunk = SamTrunk(loaded.sam, device, settings.precision, settings.compile)
    if settings.longest_side is not None and settings.longest_side > trunk.img_size:
        raise InputError(
            f"encoder.longest_side: expected at most {trunk.img_size}, found {settings.longest_side}",
            hint="Leave it out to use the size that the checkpoint was trained at",
        )
    return PlaneEncoder("sam", loaded.signature, SamTokens(trunk), settings, device)
