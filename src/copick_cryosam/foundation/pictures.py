"""Planes of a tomogram as the pictures that foundation models expect, and where pixels lie in them.

Half-pixel centres throughout: pixel j of a picture of n pixels over N voxels covers the voxels around
``(j + 0.5) * N / n - 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.errors import InputError
from copick_cryosam.types import Slices3, Volume

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Intensities", "in_colours", "planes_of", "resize", "scaled_shape"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Red, green and blue, 0 to 1, of what the foundation models were trained with."""
_PERCENTILES = (0.5, 99.5)
_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Intensities:
    """The grey values that become black and white: percentiles of the volume, so that gold does not decide."""

    low: float
    high: float

    @classmethod
    def of(cls, volume: Volume | Tensor) -> Intensities:
        """Percentiles 0.5 and 99.5 of a regular sample of at most about a million voxels.

        Parameters
        ----------
        volume : shape (Z, Y, X), any unit
        """
        step = max(1, int(np.ceil((np.prod(volume.shape) / _SAMPLES) ** (1 / 3))))
        every: Slices3 = (slice(None, None, step), slice(None, None, step), slice(None, None, step))
        sample = volume[every]
        values: NDArray[np.float32] = np.asarray(sample.cpu() if isinstance(sample, Tensor) else sample)
        low, high = np.percentile(values, _PERCENTILES)
        return cls(float(low), float(max(high, low + 1e-6)))

    def to_unit(self, planes: Tensor) -> Tensor:
        """Grey values, float and clipped to 0..1; nothing wraps and nothing is rounded to 8 bits."""
        return ((planes.float() - self.low) / (self.high - self.low)).clamp(0, 1)


def planes_of(volume: Tensor, axis: int, planes: Tensor) -> Tensor:
    """The planes across `axis`, shape (N, H, W); rows and columns are the other two axes in order.

    Parameters
    ----------
    volume : shape (Z, Y, X); planes : int64, shape (N,)
    """
    return volume.index_select(axis, planes.to(volume.device)).movedim(axis, 0)


def scaled_shape(shape: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """Height and width of a plane scaled so that its longer side has `longest_side` pixels; at least 1 each.

    Rounds as segment-anything's `ResizeLongestSide` does.
    """
    scale = longest_side / max(shape)
    return max(1, int(shape[0] * scale + 0.5)), max(1, int(shape[1] * scale + 0.5))


def resize(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased where it shrinks, half-pixel centres: (N, H, W) -> (N, *shape)."""
    if tuple(planes.shape[1:]) == shape:
        return planes
    return F.interpolate(planes[:, None], size=shape, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def in_colours(pictures: Tensor, largest: int) -> Tensor:
    """Pictures (N, h, w) or (N, 3, h, w) as red, green and blue, (N, 3, h, w); grey ones are repeated.

    Raises
    ------
    InputError
        They are larger than `largest` pixels, or have a number of channels other than 3.
    """
    if pictures.ndim == 3:
        pictures = pictures[:, None].expand(-1, 3, -1, -1)
    _, colours, height, width = pictures.shape
    if colours != 3 or max(height, width) > largest:
        raise InputError(
            f"pictures: expected 3 channels and at most {largest} x {largest} pixels, "
            f"found {colours} and {height} x {width}",
            hint="Set longest_side to what the checkpoint was trained at, or less",
        )
    return pictures
