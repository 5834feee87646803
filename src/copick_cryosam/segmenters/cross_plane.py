"""Cross-plane self-prompting: from points to 3D masks with a segmenter of planes (eqs. 1 and 2).

A point prompts the three orthogonal planes through it. Along each of ±z, ±y, ±x the next plane is
prompted with the mask of the plane before and the point of highest confidence in it, until the object
ends (`stopping.py`). All proposals take the same step at once, so that one decode serves many of them. A
segmenter that tells of several planes at once (`slabs.py`) is prompted once for each slab of planes, each of
which is judged by itself.

Every proposal lives in a cube of voxels centred on its prompt, the same cube for all three axes; it
may hang over the volume's edge. One axis gives one stack of plane masks in the cube; the three stacks
are fused by vote or union.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.segmenters import PlaneSegmenter
from copick_cryosam.segmenters.fusing import CrossPlaneMask, combine
from copick_cryosam.segmenters.prompting import Axis, half_window
from copick_cryosam.segmenters.walking import Count, Progress, walk_axis
from copick_cryosam.types import VoxelPoints

__all__ = ["CrossPlaneMask", "Progress", "half_window", "segment"]


def segment(
    volume: Tensor,
    points: VoxelPoints,
    radius_vox: float,
    segmenter: PlaneSegmenter,
    settings: SegmenterSettings,
    progress: Progress | None = None,
    *,
    sure: bool = False,
) -> list[CrossPlaneMask]:
    """Segment the object at each point (CryoSAM section 2.1, eqs. 1 and 2).

    A plane fails if its mask is empty, has a presence below `settings.presence_stop`, or no longer follows
    the object (`stopping.follows`); it is not used. A walk along one direction ends at the first plane that
    fails, or after `settings.missed_planes` more in a row; until then the last good plane prompts the next one
    and is what it is compared with. A walk also ends at the volume's edge and `settings.extent` object radii
    from the prompt, so that an object is at most `settings.extent` diameters long; two diameters, the cube's
    edge, are the most there can be. The presence rule holds for the prompted plane too, unless the points are
    `sure`.

    Parameters
    ----------
    volume : float32, shape (Z, Y, X), on the segmenter's device
        Standardised (mean 0, standard deviation 1), particles brighter than their surroundings.
    points : voxels z, y, x, need not be whole numbers
    radius_vox : radius of the object in voxels
    segmenter : any backend of `copick_cryosam.segmenters`
    settings : stop rules, fusion and batch size
    progress : told of ended walks
    sure : the points are known to lie on the object, as seeds are, and proposals may not; each plane is prompted

    Returns
    -------
    One mask for each point, in their order.

    Raises
    ------
    InputError
        The radius is not positive, or a point lies outside the volume.
    DeviceError
        Memory ran out even after the batch was halved.
    """
    _check(volume, points, radius_vox)
    if len(points) == 0:
        return []
    half = half_window(radius_vox)
    reach = min(half, max(1, math.floor(settings.extent * radius_vox + 0.5)))
    anchors = np.floor(points.zyx + 0.5).astype(np.int64)
    count = Count(6 * len(points), progress)
    batches = Batches(settings.batch, "prompts", "segmenter.batch")
    with torch.inference_mode():
        stacks = [
            walk_axis(
                Axis(segmenter, volume, axis, radius_vox, settings, batches, sure=sure),
                points.zyx,
                anchors,
                reach,
                count,
            )
            for axis in range(3)
        ]
    return [combine(stacks, index, points.zyx[index], anchors[index], half, settings) for index in range(len(points))]


def _check(volume: Tensor, points: VoxelPoints, radius_vox: float) -> None:
    if not (math.isfinite(radius_vox) and radius_vox > 0):
        raise InputError(
            f"radius: expected a positive number of voxels, found {radius_vox}", hint="Set the object's radius"
        )
    voxels = np.floor(points.zyx + 0.5)
    # Written so that a NaN counts as outside.
    outside = ~((voxels >= 0) & (voxels < np.array(volume.shape))).all(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        z, y, x = (round(float(value), 1) for value in points.zyx[first])
        raise InputError(
            f"point {first}: expected inside the volume of {tuple(volume.shape)} voxels z, y, x, found ({z}, {y}, {x})",
            hint="Check the points' voxel spacing and axis order",
        )
