"""Where a voxel of a plane lies in the picture that SAM sees, and where a low-resolution logit lies in the plane.

Three grids cover the same area from its top left: the plane's voxels (H, W), the picture's pixels (h, w) and, 4
pixels wide each, the low-resolution logits, which reach on into the padding. Voxel v covers the picture around
``(v + 0.5) * h / H`` from the edge; the published code scales rows by the wrong side and forgets the halves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.foundation.pictures import scaled_shape
from copick_cryosam.foundation.sam_trunk import Padding, padded_shape

__all__ = ["OUTSIDE", "PictureGeometry", "WindowReader"]

OUTSIDE = -16.0
"""Logit of a window's voxels beyond the plane."""

_LOW_PIXELS = 4
"""Pixels of the picture along the edge of a low-resolution logit."""


@dataclass(frozen=True)
class PictureGeometry:
    """Sizes of a plane, of its picture and of the picture with its padding; each height and width.

    Attributes
    ----------
    plane : voxels
    picture : pixels; the longer side is as asked for, the shorter one rounded
    padded : pixels, multiples of a token's edge
    """

    plane: tuple[int, int]
    picture: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(
        cls, plane: tuple[int, int], longest_side: int, img_size: int, patch: int, padding: Padding
    ) -> PictureGeometry:
        """The geometry of a plane whose longer side becomes `longest_side` pixels."""
        picture = scaled_shape(plane, longest_side)
        return cls(plane, picture, padded_shape(picture, img_size, patch, padding))

    @property
    def low(self) -> tuple[int, int]:
        """Height and width of the low-resolution logits, padding included."""
        return self.padded[0] // _LOW_PIXELS, self.padded[1] // _LOW_PIXELS

    def to_picture(self, points: Tensor) -> Tensor:
        """Voxels (row, column) -> SAM's point coordinates (x, y), float32, shape (N, 2).

        SAM's prompt encoder adds half a pixel to what it is given, so ``x + 0.5 = (column + 0.5) * w / W``.
        """
        scale = points.new_tensor([self.picture[i] / self.plane[i] for i in (0, 1)], dtype=torch.float32)
        return ((points.float() + 0.5) * scale - 0.5).flip(1)

    def inside(self, device: torch.device) -> Tensor:
        """Which low-resolution logits have their centre in the picture, not in its padding; bool, shape `low`."""
        rows, columns = (
            (torch.arange(count, device=device) + 0.5) * _LOW_PIXELS < side
            for count, side in zip(self.low, self.picture, strict=True)
        )
        return rows[:, None] & columns[None, :]

    def boxes(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes around low-resolution masks in SAM's coordinates, (N, 4), and which masks are not empty, (N,).

        Corners lie on the outer edges of the outermost logits, but not in the padding. The box of an empty mask
        has no meaning.

        Parameters
        ----------
        masks : bool, shape (N, *low), padding False
        """
        spans = []
        for other, side in ((1, self.picture[1]), (2, self.picture[0])):
            line = masks.any(other)
            first = line.int().argmax(1)
            last = line.shape[1] - line.flip(1).int().argmax(1)
            spans.append((first * _LOW_PIXELS, (last * _LOW_PIXELS).clamp_max(side)))
        (left, right), (top, bottom) = spans
        return torch.stack([left, top, right, bottom], dim=1) - 0.5, masks.flatten(1).any(1)


class WindowReader:
    """Low-resolution logits to one logit for each voxel of a window, as SAM upsamples its masks.

    ``Sam.postprocess_masks`` interpolates to the padded picture, crops the padding and interpolates to the plane,
    all of it bilinear, hence linear and separable: a matrix for the rows and one for the columns, made by sending
    the unit vectors through the same interpolations. A window needs only its own rows of them.

    At native padding there are no logits beyond the last token; the one or two outermost pixels of the picture
    repeat the last logit where the square reads 1/8 to 3/8 of the first one in the padding.
    """

    def __init__(self, geometry: PictureGeometry, device: torch.device) -> None:
        self.geometry = geometry
        self._rows, self._columns = (
            _operator(geometry.low[i], geometry.padded[i], geometry.picture[i], geometry.plane[i]).to(device)
            for i in (0, 1)
        )

    def read(self, low: Tensor, windows: Tensor, window: int) -> Tensor:
        """Logits of the windows' voxels, float32, shape (N, window, window); `OUTSIDE` beyond the plane.

        Parameters
        ----------
        low : float32, shape (N, *geometry.low)
        windows : int64, shape (N, 2), first row and column; may lie outside the plane
        window : voxels
        """
        height, width = self.geometry.plane
        offsets = torch.arange(window, device=low.device)
        rows, columns = windows[:, :1] + offsets, windows[:, 1:] + offsets
        logits = self._rows[rows.clamp(0, height - 1)] @ low @ self._columns[columns.clamp(0, width - 1)].mT
        within_rows, within_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        return logits.masked_fill(~(within_rows[:, :, None] & within_columns[:, None, :]), OUTSIDE)


def _operator(low: int, padded: int, picture: int, plane: int) -> Tensor:
    """Rows of one side's interpolations, shape (plane, low); each sums to one."""
    units = torch.eye(low)[None]
    pixels = F.interpolate(units, size=padded, mode="linear", align_corners=False)[..., :picture]
    voxels = F.interpolate(pixels, size=plane, mode="linear", align_corners=False)
    return voxels[0].T.contiguous()
