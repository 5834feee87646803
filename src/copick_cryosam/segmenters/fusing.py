"""Three stacks of plane masks, one for each axis, become the 3D mask of one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.types import FloatArray

__all__ = ["AxisStack", "CrossPlaneMask", "combine"]


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossPlaneMask:
    """The 3D mask that one point gave.

    Attributes
    ----------
    mask : bool array, shape (d, h, w), axes z, y, x
        Cropped to the mask's bounding box; shape (0, 0, 0) where nothing was found.
    origin_zyx : the voxel of the volume at ``mask[0, 0, 0]``; the prompt's voxel where nothing was found
    prompt_zyx : the point, in voxels
    confidence : predicted IoU x agreement, 0 to 1
    predicted_iou : the segmenter's own IoU, mean over the planes used weighted by their mask area
    agreement : mean pairwise Dice of the three axes' stacks
    planes : planes used, over the three axes
    decodes : prompts decoded, those that ended a walk included; a slab of planes is one
    """

    mask: NDArray[np.bool_]
    origin_zyx: tuple[int, int, int]
    prompt_zyx: tuple[float, float, float]
    confidence: float
    predicted_iou: float
    agreement: float
    planes: int
    decodes: int


@dataclass(frozen=True, eq=False)
class AxisStack:
    """What the walks along one axis gave for N proposals.

    Attributes
    ----------
    bits : uint8, shape (N, ceil(edge³ / 8))
        Each proposal's cube of masks, axes z, y, x, flattened and packed by `numpy.packbits`: all
        proposals are held until the last axis is done.
    area : voxels in the planes used, shape (N,)
    area_iou : their sum weighted by each plane's predicted IoU, shape (N,)
    planes : planes used, shape (N,)
    decodes : prompts decoded, shape (N,)
    """

    bits: NDArray[np.uint8]
    area: NDArray[np.int64]
    area_iou: FloatArray
    planes: NDArray[np.int64]
    decodes: NDArray[np.int64]


def combine(
    stacks: Sequence[AxisStack],
    index: int,
    point: FloatArray,
    anchor: NDArray[np.int64],
    half: int,
    settings: SegmenterSettings,
) -> CrossPlaneMask:
    """Fuse the three stacks of one proposal and keep the component that was prompted.

    Parameters
    ----------
    stacks : of the z, y and x axes
    index : which proposal
    point : its prompt in voxels z, y, x
    anchor : the voxel at the centre of its cube
    half : the cube's edge is twice that plus one
    settings : `fuse`: a voxel needs two of the three axes (vote) or one (union, the paper's)
    """
    edge = 2 * half + 1
    cubes = [np.unpackbits(s.bits[index], count=edge**3).view(np.bool_).reshape(edge, edge, edge) for s in stacks]
    votes = np.sum(cubes, axis=0, dtype=np.uint8)
    fused = np.asarray(votes >= (2 if settings.fuse == "vote" else 1))
    mask, corner = _prompted_component(fused, point - (anchor - half))
    if mask.size == 0:
        corner = np.full(3, half)
    area = sum(int(s.area[index]) for s in stacks)
    predicted = sum(float(s.area_iou[index]) for s in stacks) / max(area, 1)
    predicted = min(max(predicted, 0.0), 1.0)
    agreement = float(np.mean([_dice(cubes[a], cubes[b]) for a, b in ((0, 1), (0, 2), (1, 2))]))
    z, y, x = (int(value) for value in anchor - half + corner)
    return CrossPlaneMask(
        mask=mask,
        origin_zyx=(z, y, x),
        prompt_zyx=(float(point[0]), float(point[1]), float(point[2])),
        confidence=predicted * agreement if mask.size else 0.0,
        predicted_iou=predicted,
        agreement=agreement,
        planes=sum(int(s.planes[index]) for s in stacks),
        decodes=sum(int(s.decodes[index]) for s in stacks),
    )


def _prompted_component(fused: NDArray[np.bool_], prompt: FloatArray) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The connected component nearest to `prompt`, cropped to its bounding box, and the box's first voxel.

    Faces connect, edges and corners do not: touching particles meet in diagonal one-voxel bridges, while
    particles themselves are solid. A hollow particle prompted in its cavity is found as the nearest.
    """
    where = np.argwhere(fused)
    if len(where) == 0:
        return np.zeros((0, 0, 0), dtype=np.bool_), np.zeros(3, dtype=np.int64)
    nearest = where[np.argmin(((where - prompt) ** 2).sum(axis=1))]
    labels = cc3d.connected_components(fused, connectivity=6)
    component = labels == labels[tuple(nearest)]
    voxels = np.argwhere(component)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return component[z, y, x].copy(), low


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 0.0
