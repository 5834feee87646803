"""What averages of picks resolve, beside the density that was simulated.

An average takes the best picks, false ones too, as users get it. Its truth is the true density in the seed's true
pose: an average keeps the frame of the first seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.averaging import average, cut_boxes, fourier_shell_correlation, resolution
from copick_cryosam.types import Instance, Pose, VoxelPoints
from copick_cryosam.wedge import Wedge

VOXEL_SPACING = 10.0
"""Å, of the simulated tomograms."""
LEAST_AVERAGED = 4
_MASK = 1.2
"""Radii within which averages are compared."""


@dataclass(frozen=True, kw_only=True)
class AverageScore:
    """An average of the best picks.

    Attributes
    ----------
    poses : coarse, fine, or true (those of picks that hit a particle)
    count : picks
    true : of them particles of the kind
    resolution_0143, resolution_05 : Å, of the halves
    against_truth : Å where the FSC with the true density falls below 0.5; it has no template bias
    correlation : with the true density, within 1.2 radii
    """

    poses: str
    count: int
    true: int
    resolution_0143: float
    resolution_05: float
    against_truth: float
    correlation: float


class Pick(NamedTuple):
    """A pick with its coarse pose, and its particle's true rotation and centre where it hit one."""

    tomogram: int
    instance: Instance
    coarse: Pose
    fine: Pose
    true: Pose | None


def density_in_pose(density: NDArray[np.float32], pose: Pose, edge: int) -> NDArray[np.float32]:
    """A centred cube as it looks in a box of another edge, its centre at voxel ``edge // 2 + pose.centre_zyx``."""
    turn = pose.rotation.T
    middle = (np.array(density.shape) - 1) / 2
    offset = middle - turn @ (edge // 2 + np.array(pose.centre_zyx))
    return np.asarray(ndimage.affine_transform(density, turn, offset, (edge,) * 3, order=1), dtype=np.float32)


def score_averages(
    volumes: Sequence[NDArray[np.float32]],
    wedges: Sequence[Wedge],
    picks: Sequence[Pick],
    truth: NDArray[np.float32],
    seed: Pose,
    radius: float,
) -> list[AverageScore]:
    """Averages of the 4, 8, 16, ... and all of the picks, best first, each with coarse, fine and true poses.

    Parameters
    ----------
    truth : density as it looks in the seed, cube of odd edge, the voxel edge // 2 at the seed's mask's centroid
    seed : the seed's true rotation, and its true centre from its mask's centroid
    """
    counts = [LEAST_AVERAGED * 2**k for k in range(8) if LEAST_AVERAGED * 2**k < len(picks)]
    counts += [len(picks)] if len(picks) >= LEAST_AVERAGED else []
    scores = []
    for name in ("coarse", "fine", "true"):
        for count in counts:
            some = [pick for pick in picks[:count] if name != "true" or pick.true is not None]
            if len(some) < 2:
                continue
            poses = [_pose(pick, name, seed) for pick in some]
            cut = [
                cut_boxes(
                    torch.from_numpy(volumes[pick.tomogram]), VoxelPoints(np.array([pose.centre_zyx])), len(truth)
                )
                for pick, pose in zip(some, poses, strict=True)
            ]
            made = average(
                torch.cat([box for box, _ in cut]),
                np.array([pose.rotation for pose in poses]),
                [wedges[pick.tomogram] for pick in some],
                voxel_spacing=VOXEL_SPACING,
                offsets=torch.cat([offset for _, offset in cut]),
                mask_radius=_MASK * radius,
            )
            fsc = fourier_shell_correlation(torch.from_numpy(made.density), torch.from_numpy(truth), _MASK * radius)
            scores.append(
                AverageScore(
                    poses=name,
                    count=len(some),
                    true=sum(pick.true is not None for pick in some),
                    resolution_0143=made.resolution_0143,
                    resolution_05=made.resolution_05,
                    against_truth=resolution(fsc, made.frequencies, 0.5),
                    correlation=_correlation(made.density, truth, _MASK * radius),
                )
            )
    return scores


def _pose(pick: Pick, name: str, seed: Pose) -> Pose:
    """The pose to average a pick with; the true one turns the seed into the particle."""
    if name != "true" or pick.true is None:
        return pick.coarse if name == "coarse" else pick.fine
    turn = pick.true.rotation @ seed.rotation.T
    centre = np.array(pick.true.centre_zyx) - turn @ np.array(seed.centre_zyx)
    return Pose(rotation=turn, centre_zyx=(centre[0], centre[1], centre[2]))


def _correlation(found: NDArray[np.float32], truth: NDArray[np.float32], radius: float) -> float:
    places = np.indices(truth.shape) - truth.shape[0] // 2
    ball = np.linalg.norm(places, axis=0) <= radius
    return float(np.corrcoef(found[ball], truth[ball])[0, 1])
