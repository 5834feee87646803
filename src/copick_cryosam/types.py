"""The values that stages hand to each other.

Two coordinate systems exist and never mix: voxel indices in (z, y, x), as arrays are
indexed, and positions in Å in (x, y, z), as copick stores them. Each has a type of its
own and `Grid` is the only place that converts one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Slices3 = tuple[slice, slice, slice]


def _as_points(values: object, what: str) -> FloatArray:
    points = np.array(values, dtype=np.float64, ndmin=2)
    if points.size == 0:
        points = points.reshape(0, 3)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{what}: expected shape (N, 3), found {points.shape}")
    points.setflags(write=False)
    return points


@dataclass(frozen=True, eq=False)
class VoxelPoints:
    """Points in voxel indices, order z, y, x; shape (N, 3). Index 0 is the centre of the first voxel."""

    zyx: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "zyx", _as_points(self.zyx, "voxel points"))

    def __len__(self) -> int:
        return len(self.zyx)


@dataclass(frozen=True, eq=False)
class AngstromPoints:
    """Points in Å, order x, y, z, corner origin (copick's convention); shape (N, 3)."""

    xyz: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "xyz", _as_points(self.xyz, "Å points"))

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Grid:
    """The sampling of a tomogram: its shape in voxels (z, y, x) and its voxel spacing in Å."""

    shape_zyx: tuple[int, int, int]
    voxel_spacing: float

    def to_angstrom(self, points: VoxelPoints) -> AngstromPoints:
        """Å = index * voxel spacing, without a half-voxel shift, axes reversed to x, y, z."""
        return AngstromPoints(points.zyx[:, ::-1] * self.voxel_spacing)

    def to_voxels(self, points: AngstromPoints) -> VoxelPoints:
        """The inverse of `to_angstrom`; the result is not rounded."""
        return VoxelPoints(points.xyz[:, ::-1] / self.voxel_spacing)

    def contains(self, points: VoxelPoints) -> NDArray[np.bool_]:
        """Which points round to a voxel of the grid; shape (N,)."""
        nearest = np.floor(points.zyx + 0.5)
        return np.asarray(((nearest >= 0) & (nearest < np.array(self.shape_zyx))).all(axis=1))


class Volume(Protocol):
    """Anything that can be sliced like an array in (z, y, x): a numpy array or a lazy OME-Zarr view."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, region: Slices3, /) -> NDArray[np.float32]: ...


class Progress(Protocol):
    """Called as work goes on: the stage's name, steps done, steps in all."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Proposals:
    """Where particles are proposed, best first.

    `points` are voxels, `similarity` and `score` have shape (N,). `similarity` is the cosine with the
    query; `score` is what matching ranks by.
    """

    points: VoxelPoints
    similarity: FloatArray
    score: FloatArray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Proposals:
        return Proposals(
            points=VoxelPoints(self.points.zyx[which]), similarity=self.similarity[which], score=self.score[which]
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Pose:
    """How a particle lies: particle(x) = reference(R^T (x - c)).

    Attributes
    ----------
    rotation : R, reference to tomogram, shape (3, 3), acting on (z, y, x) columns
    centre_zyx : c, voxels of the tomogram
    """

    rotation: FloatArray
    centre_zyx: tuple[float, float, float]

    @property
    def rotation_xyz(self) -> FloatArray:
        """The same rotation acting on (x, y, z) columns, shape (3, 3), as copick and RELION have it.

        copick's transformation of a pick turns the object into the tomogram (`copick.util.relion`), as R does.
        """
        return self.rotation[::-1, ::-1]


@dataclass(frozen=True, eq=False, kw_only=True)
class Instance:
    """One segmented particle, its mask cropped to its bounding box.

    Attributes
    ----------
    mask : bool array, shape (d, h, w), axes z, y, x
    origin_zyx : the voxel of the tomogram at ``mask[0, 0, 0]``
    prompt_zyx : the point that prompted the segmentation, in voxels
    similarity : cosine similarity with the query at the prompt
    confidence : how sure the segmenter is of the mask, 0 to 1 (predicted IoU x agreement of the axes)
    score : what the picks are ranked by, see `InstanceSettings.rank_by` (CryoSAM itself has none)
    expected_precision : calibrated probability of being a true pick, NaN where there was nothing to calibrate
    pose : orientation relative to the first seed, None where there was no second look
    """

    mask: NDArray[np.bool_]
    origin_zyx: tuple[int, int, int]
    prompt_zyx: tuple[float, float, float]
    similarity: float
    confidence: float
    score: float
    expected_precision: float = float("nan")
    pose: Pose | None = None

    @property
    def size(self) -> int:
        """Voxels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def centroid_zyx(self) -> tuple[float, float, float]:
        """Centre of mass of the mask in voxels of the tomogram; the prompt where the mask is empty."""
        found = np.nonzero(self.mask)
        if len(found[0]) == 0:
            return self.prompt_zyx
        z, y, x = (float(axis.mean()) + start for axis, start in zip(found, self.origin_zyx, strict=True))
        return z, y, x

    @property
    def slices(self) -> Slices3:
        """The mask's bounding box in the tomogram."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.origin_zyx, self.mask.shape, strict=True))
        return z, y, x


def centroids(instances: Sequence[Instance]) -> VoxelPoints:
    """Centroids of many instances, shape (N, 3), voxels z, y, x."""
    return VoxelPoints(np.array([one.centroid_zyx for one in instances], dtype=np.float64).reshape(-1, 3))


def paint(shape_zyx: tuple[int, int, int], instances: Sequence[Instance]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Instances as one label volume: the first instance becomes 1, the second 2, and so on.

    Where masks overlap, the earlier instance keeps the voxel; callers order them best first. uint16, or
    uint32 where there are too many instances for it.
    """
    labels: NDArray[np.uint16] | NDArray[np.uint32] = np.zeros(shape_zyx, dtype=np.uint16)
    if len(instances) > np.iinfo(np.uint16).max:
        labels = np.zeros(shape_zyx, dtype=np.uint32)
    for label, one in enumerate(instances, start=1):
        view = labels[one.slices]
        view[one.mask & (view == 0)] = label
    return labels
