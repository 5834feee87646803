"""Slabs: of how many planes one prompt tells.

Cross-plane self-prompting moves from plane to plane. A segmenter that sees the planes around the prompted one
can say what it thinks of several of them at once; a walk then prompts once for each slab of planes, and every
plane is still judged by itself. Segmenters of single planes have slabs of one plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from copick_cryosam.segmenters import Decoded, PlaneSegmenter

__all__ = ["SlabPrompts", "SlabSegmenter", "decode_slab", "planes_told"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SlabPrompts:
    """N prompts, each in the middle of a slab of planes.

    Attributes
    ----------
    planes : int64, shape (N,)
        Index of each slab's middle plane along the axis; may lie outside the volume.
    directions : int64, shape (N,), 1 or -1
        Which way the walk goes.
    points : float32, shape (N, 2)
        The positive click in voxels of the plane (row, column).
    windows : int64, shape (N, 2)
        First row and column of each prompt's window; may lie outside the plane.
    masks : `Decoded.prompt` of the last plane that was used, rows as the prompts here; None on the first plane
    away : int64, shape (N,)
        How many voxels that plane lies before the slab's middle; 0 on the first plane.
    """

    planes: Tensor
    directions: Tensor
    points: Tensor
    windows: Tensor
    masks: Tensor | None
    away: Tensor

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, some: slice) -> SlabPrompts:
        return SlabPrompts(
            planes=self.planes[some],
            directions=self.directions[some],
            points=self.points[some],
            windows=self.windows[some],
            masks=None if self.masks is None else self.masks[some],
            away=self.away[some],
        )


@runtime_checkable
class SlabSegmenter(Protocol):
    """What a plane segmenter offers beyond `PlaneSegmenter` if it tells of several planes at once."""

    def planes_told(self, window: int) -> int:
        """Planes on each side of the prompted one, in voxels, for windows of `window` voxels."""
        ...

    def decode_slab(self, embeddings: Any, prompts: SlabPrompts, window: int, told: int) -> list[Decoded]:
        """What `PlaneSegmenter.decode` says, of `told` planes on each side, too, in the order of the walk.

        `told` is at most `planes_told`.
        """
        ...


def planes_told(segmenter: PlaneSegmenter, window: int) -> int:
    """Planes on each side of the prompted one that a decode tells of, in voxels."""
    return segmenter.planes_told(window) if isinstance(segmenter, SlabSegmenter) else 0


def decode_slab(
    segmenter: PlaneSegmenter, embeddings: Any, prompts: SlabPrompts, window: int, told: int
) -> list[Decoded]:
    """The planes of each prompt's slab, twice `told` and one, in the order of the walk."""
    if isinstance(segmenter, SlabSegmenter):
        return segmenter.decode_slab(embeddings, prompts, window, told)
    return [segmenter.decode(embeddings, prompts.planes, prompts.points, prompts.windows, window, prompts.masks)]
