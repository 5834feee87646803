"""How far estimated orientations are from the truth, with the particle's own symmetry respected.

Rotations act on (z, y, x) columns and turn the reference into the particle, as `simulate.Specimen.rotations` do:
``particle(x) = reference(R^T (x - c))``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from copick_cryosam.rotations import angles_between
from copick_cryosam.types import FloatArray

Rotations = NDArray[np.float64]

_STARTS = 2500
"""Random rotations, about 12 degrees from each other."""
_VOXELS = 1000
_NEARBY = 0.35
"""Loss of correlation at which a start may still lie beside an equivalent rotation."""


def self_symmetries(
    density: NDArray[np.float32], threshold: float = 0.95, *, spacing: float = 6.0, seed: int = 0
) -> Rotations:
    """Rotations S about the centre under which a density looks the same, shape (M, 3, 3), the identity first.

    Found by climbing the correlation of density(S x) and density(x) from random rotations, over a sample of the
    voxels in the ball that holds the density. Where the correlation is flat (a sphere, a smooth cylinder), the
    result samples the continuum.

    Parameters
    ----------
    density : cube of odd edge, centred, at the resolution at which orientations are estimated
    threshold : correlation from which two orientations count as the same
    spacing : degrees; of rotations nearer to each other the better one stands for both
    """
    rng = np.random.default_rng(seed)
    half = (density.shape[0] - 1) / 2
    places = np.argwhere(np.ones(density.shape, dtype=bool)) - half
    reach = np.linalg.norm(places[density.ravel() > 0.1 * density.max()], axis=1).max()
    places = places[np.linalg.norm(places, axis=1) <= min(reach + 1, half)]
    places = places[rng.permutation(len(places))[:_VOXELS]]
    cube = torch.from_numpy(np.ascontiguousarray(density, dtype=np.float32))[None, None]
    points = torch.from_numpy(places.astype(np.float32))

    def values(rotations: Rotations) -> torch.Tensor:
        at = points @ torch.from_numpy(rotations.astype(np.float32)).transpose(1, 2)
        grid = (at / half).flip(-1).reshape(1, 1, len(rotations), len(points), 3)
        found = torch.nn.functional.grid_sample(cube, grid, align_corners=True)[0, 0, 0]
        found = found - found.mean(dim=1, keepdim=True)
        scaled: torch.Tensor = found / found.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return scaled

    same = values(np.eye(3)[None])[0]

    def correlate(rotations: Rotations) -> NDArray[np.float64]:
        parts = [values(rotations[k : k + 500]) @ same for k in range(0, len(rotations), 500)]
        return torch.cat(parts).double().numpy()

    found = Rotation.random(_STARTS, random_state=rng).as_matrix()
    score = correlate(found)
    chosen = _thin(found, score, threshold - _NEARBY, 2 * spacing)
    found, score = found[chosen], score[chosen]
    step = 8.0
    while step > 0.5 and len(found):
        turns = Rotation.from_rotvec(np.concatenate([np.eye(3), -np.eye(3)]) * step, degrees=True).as_matrix()
        moved = False
        for turn in turns:
            tried = found @ turn
            new = correlate(tried)
            better = new > score + 1e-4
            found[better], score[better] = tried[better], new[better]
            moved |= bool(better.any())
        step = step if moved else step / 2
    everything = np.concatenate([np.eye(3)[None], found])
    # 2 is more than any correlation: the identity comes first
    return everything[_thin(everything, np.concatenate([[2.0], score]), threshold, spacing)]


def _thin(rotations: Rotations, score: NDArray[np.float64], least: float, spacing: float) -> NDArray[np.int64]:
    """Indices of those above `least`, best first, none nearer than `spacing` degrees to a better one."""
    kept: list[int] = []
    for index in np.argsort(-score)[: int((score > least).sum())]:
        if not kept or angles_between(rotations[kept], rotations[index]).min() > spacing:
            kept.append(int(index))
    return np.array(kept, dtype=np.int64)


def orientation_errors(
    estimated: Rotations,
    true: Rotations,
    symmetries: Rotations | None = None,
    reference_offset: Rotations | None = None,
) -> NDArray[np.float64]:
    """Smallest angle in degrees between each estimate and any rotation equivalent to the truth, shape (N,).

    An estimate turns the template into the particle. Where the template is one seed particle as it lies in the
    tomogram, ``template(x) = reference(R_seed^T x)``, and ``particle_i(x) = template(R_est^T x) =
    reference((R_est R_seed)^T x)``, hence ``R_est R_seed = R_true_i S``, where S is any rotation under which the
    reference looks the same, and ``R_est = R_true_i S Q`` with ``Q = R_seed^T``. An average of particles aligned
    to that seed keeps its frame and Q.

    Parameters
    ----------
    estimated, true : shape (N, 3, 3)
    symmetries : shape (M, 3, 3), S of the true reference, see `self_symmetries`; None is the identity alone
    reference_offset : Q, shape (3, 3): the transpose of the seed's true rotation; None where the template is the
        true reference itself
    """
    same = np.eye(3)[None] if symmetries is None else symmetries
    offset = np.eye(3) if reference_offset is None else reference_offset
    equivalent = true[:, None] @ same[None] @ offset
    return np.asarray(angles_between(estimated[:, None], equivalent).min(axis=1))


def errors_in_common_frame(estimated: Rotations, true: Rotations, symmetries: Rotations | None = None) -> FloatArray:
    """Errors as of `orientation_errors`, but in the frame that the estimates agree on, shape (N,).

    Who averages does not mind in which frame, as long as all particles are in the same: an average that has turned
    away from the seed while it was made is as good. The frame of a pick is that in which some other one would be
    without error and the median of all but itself is lowest, so that no pick has a say about its own error.

    Parameters
    ----------
    estimated, true, symmetries : as of `orientation_errors`

    Returns
    -------
    Degrees; NaN where there are fewer than three, which agree on nothing.
    """
    count = len(estimated)
    if count < 3:
        return np.full(count, np.nan)
    frames = true.transpose(0, 2, 1) @ estimated
    errors = np.stack([orientation_errors(estimated, true, symmetries, frame) for frame in frames])
    own = np.eye(count, dtype=bool)
    # what a frame is judged by: neither the pick that it is for, nor the one that it is of
    left = np.where(own, np.nan, errors)
    result = np.empty(count)
    for pick in range(count):
        others = np.delete(np.arange(count), pick)
        medians = np.nanmedian(left[np.ix_(others, others)], axis=1)
        result[pick] = errors[others[int(medians.argmin())], pick]
    return result
