"""The planes of a tomogram across one axis as SAM's image embeddings, encoded when they are asked for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.foundation.pictures import Intensities, planes_of, resize
from copick_cryosam.foundation.sam_trunk import Padding, SamTrunk
from copick_cryosam.segmenters.sam_geometry import PictureGeometry, WindowReader

__all__ = ["Channels", "SamPlanes"]

Channels = Literal["repeat", "mean", "neighbours"]


class SamPlanes:
    """Embeddings of the planes across one axis; each is computed once, when the first prompt needs it.

    Parameters
    ----------
    volume : float32, shape (Z, Y, X)
    axis : 0, 1 or 2
    trunk : SAM's image encoder
    longest_side : pixels of a plane's longer side
    padding : see `SamTrunk.encode`
    channels : what red, green and blue are: the plane three times, three times the mean of the planes p-1, p and
        p+1, or these three; beyond the volume its last plane is repeated
    batches : how many planes are encoded in one call; shared, so that a size that was too large stays reduced
    """

    def __init__(
        self,
        volume: Tensor,
        axis: int,
        trunk: SamTrunk,
        longest_side: int,
        padding: Padding,
        channels: Channels,
        batches: Batches,
    ) -> None:
        height, width = (length for other, length in enumerate(volume.shape) if other != axis)
        self.geometry = PictureGeometry.of((height, width), longest_side, trunk.img_size, trunk.patch, padding)
        self.windows = WindowReader(self.geometry, trunk.device)
        self.inside = self.geometry.inside(trunk.device)
        self._volume, self._axis = volume, axis
        self._trunk, self._batches = trunk, batches
        self._padding, self._channels = padding, channels
        self._intensities = Intensities.of(volume)
        self._encoded: dict[int, Tensor] = {}

    def embeddings(self, planes: Tensor) -> Tensor:
        """The embeddings of N planes, shape (N, channels, th, tw), of the trunk's dtype and on its device.

        Parameters
        ----------
        planes : int64, shape (N,), any order, may repeat

        Raises
        ------
        DeviceError
            Memory ran out even after the batch was halved.
        """
        wanted: list[int] = planes.tolist()
        missing = sorted(set(wanted).difference(self._encoded))

        def encode(some: slice) -> None:
            new = self._trunk.encode(self._pictures(missing[some]), self._padding, self._batches.size)
            self._encoded.update(zip(missing[some], new, strict=True))

        for _ in self._batches.run(len(missing), encode):
            pass
        return torch.stack([self._encoded[plane] for plane in wanted])

    def _pictures(self, planes: list[int]) -> Tensor:
        """Pictures of the planes, values 0 to 1, shape (N, h, w) or (N, 3, h, w)."""
        middle = torch.tensor(planes, device=self._volume.device)
        if self._channels == "repeat":
            return self._scaled(planes_of(self._volume, self._axis, middle))
        steps = torch.arange(-1, 2, device=middle.device)
        three = (middle[:, None] + steps).clamp(0, self._volume.shape[self._axis] - 1)
        grey = planes_of(self._volume, self._axis, three.flatten())
        if self._channels == "mean":
            return self._scaled(grey.reshape(-1, 3, *self.geometry.plane).mean(1))
        return self._scaled(grey).reshape(-1, 3, *self.geometry.picture)

    def _scaled(self, grey: Tensor) -> Tensor:
        return resize(self._intensities.to_unit(grey.to(self._trunk.device)), self.geometry.picture)
