"""Matching the query through the tomogram: similarity, non-maximum suppression, proposals (eqs. 4 to 6)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.config import MatchingSettings
from copick_cryosam.encoders.whitening import inverse_root
from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, DenseFeatures, Features
from copick_cryosam.suppression import survivors
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints
from copick_cryosam.unit_vectors import to_unit

FloatVolume = NDArray[np.float32]
CENTRE_POWER = 0.1
"""How much being a centre counts beside the similarity: enough to part equals, too little to hide a faint particle."""
WHITENING_SHRINKAGE = 0.1
"""How far the covariance is drawn towards a multiple of the identity: fully whitened, directions that hold noise alone
count as much as the others, and scores are harder to calibrate."""
_WHITENED_AT_ONCE = 1 << 24
NEGATIVES = 16
"""Features that may stand for what must not be found; each costs a similarity map."""
_ROUNDING = 1e-6
_CANDIDATES = 20_000
"""Peaks looked at before suppression, so that a noisy map cannot take all memory."""


def whiten_dense(features: Features, settings: MatchingSettings) -> None:
    """Whiten dense features by the tomogram's own statistics, in place, as `settings.whitening` asks.

    What all cells share says nothing about which of them hold the object. "mean" subtracts the mean over all
    cells; "full" also multiplies by the inverse square root of their covariance, which is drawn towards a multiple
    of the identity by `WHITENING_SHRINKAGE`. The root is the symmetric one: axes keep their meaning, so that
    tomograms can be compared. Token features were whitened by their encoder, where `EncoderSettings.whitening` asks
    for it, and stay as they are. In place, because features are the largest thing in memory.
    """
    if settings.whitening == "none" or not isinstance(features, DenseFeatures):
        return
    values = features.values
    channels, cells = len(values), values[0].numel()
    depth = max(1, _WHITENED_AT_ONCE // values[:, 0].numel())
    slabs = [values[:, start : start + depth] for start in range(0, values.shape[1], depth)]
    mean = torch.stack([slab.double().sum((1, 2, 3)) for slab in slabs]).sum(0).float()[:, None] / cells
    root = torch.eye(channels, device=values.device)
    if settings.whitening == "full":
        centred = (slab.float().reshape(channels, -1) - mean for slab in slabs)
        covariance = torch.stack([(part @ part.T).double() for part in centred]).sum(0) / cells
        spherical = covariance.trace() / channels * torch.eye(channels, dtype=covariance.dtype, device=values.device)
        root = inverse_root((1 - WHITENING_SHRINKAGE) * covariance + WHITENING_SHRINKAGE * spherical)
    for slab in slabs:
        slab.copy_((root @ (slab.float().reshape(channels, -1) - mean)).reshape(slab.shape))


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """What is looked for, from all seeds of all tomograms (eq. 4).

    Attributes
    ----------
    positives : float32, shape (P, C), P >= 1: the prototypes of the object; resembling one of them is enough
    negatives : float32, shape (K, C): what must not be found; K may be 0
    """

    positives: NDArray[np.float32]
    negatives: NDArray[np.float32]


def merge_queries(
    pooled: Sequence[tuple[NDArray[np.float32], int]],
    negatives: Sequence[NDArray[np.float32]],
    settings: MatchingSettings | None = None,
) -> Query:
    """One query from the features of all seeds, weighted by their numbers of voxels.

    Parameters
    ----------
    pooled : mean feature, shape (C,), and number of voxels of each seed, or of all seeds of a tomogram
    negatives : features of what must not be found, shape (C,) each; more than `NEGATIVES` are grouped
    settings : `prototypes`, how many features may stand for the object; None: one, as in the paper
    """
    if not pooled:
        raise ValueError("query: expected at least one seed's feature, found none")
    vectors = np.stack([vector for vector, _ in pooled])
    weights = np.array([count for _, count in pooled], dtype=np.float64)
    most, agreed = (1, 1.0) if settings is None else (settings.prototypes, settings.prototype_similarity)
    against = np.stack(negatives) if negatives else np.zeros((0, vectors.shape[1]), dtype=np.float32)
    return Query(
        positives=_prototypes(vectors, weights, most, agreed),
        negatives=_prototypes(against, np.ones(len(against)), NEGATIVES, 1.0),
    )


def _prototypes(vectors: NDArray[np.float32], weights: FloatArray, most: int, agreed: float) -> NDArray[np.float32]:
    """Weighted means of groups of features (N, C), at most `most` of them: shape (groups, C).

    Spherical k-means started farthest first: the first group forms around the feature most like all others,
    each further one around the feature least like those, if its cosine with them is less than `agreed`.
    """
    if len(vectors) == 0:
        return vectors
    unit = to_unit(vectors)
    alike = unit @ unit.T
    chosen = [int(np.argmax(alike.sum(axis=1)))]
    while len(chosen) < min(most, len(vectors)):
        nearest = alike[chosen].max(axis=0)
        nearest[chosen] = np.inf
        if nearest.min() >= agreed - _ROUNDING:
            break
        chosen.append(int(np.argmin(nearest)))
    groups: NDArray[np.int64] = np.argmax(alike[:, chosen], axis=1)
    for _ in range(20):
        means = to_unit(np.stack([unit[groups == group].sum(axis=0) for group in np.unique(groups)]))
        before, groups = groups, np.argmax(unit @ means.T, axis=1)
        if np.array_equal(before, groups):
            break
    members = [groups == group for group in np.unique(groups)]
    return np.stack([np.average(vectors[some], axis=0, weights=weights[some]) for some in members]).astype(np.float32)


def similarity_map(features: Features, query: Query) -> FloatVolume:
    """Similarity of every cell with the query: cosine with the nearest prototype, less its excess (`_contrast`)."""
    return _contrast(features.similarity, query)


def _contrast(similarity: Callable[[NDArray[np.float32]], FloatVolume], query: Query) -> FloatVolume:
    """Cosine with the nearest prototype, less what resembles a negative more than the object itself does.

    A particle resembles a negative about as much as the object's prototypes do. Taking all of the similarity
    with negatives off, as a plain difference does, would leave nothing of particles that look like them.
    However many negatives say the same, it counts once.

    Parameters
    ----------
    similarity : cosine of some cells with a feature, shape (C,)
    """
    prototypes = to_unit(query.positives)
    expected = [max(0.0, float((prototypes @ one).max())) for one in to_unit(query.negatives)]
    excess = [similarity(one) - np.float32(level) for one, level in zip(query.negatives, expected, strict=True)]
    found = reduce(np.maximum, map(similarity, query.positives))
    return np.asarray(found - reduce(np.maximum, excess, np.zeros_like(found)))


def hierarchical_map(features: Features, query: Query, settings: MatchingSettings) -> tuple[FloatVolume, CellGrid]:
    """Similarity found coarse to fine: only what passes tau_sim at one ratio is looked at in the next.

    Returns the map at the finest ratio, -1 where it was not looked at or fell below the threshold, and its
    grid. The threshold holds at every level, the last one too.
    """
    stride = min(features.grid.stride)
    keep: NDArray[np.bool_] | None = None
    grid = features.grid
    similarity = np.full(grid.shape, -1, dtype=np.float32)
    for ratio in settings.ratios:
        level = features.pooled(max(1, round(ratio / stride)))
        keep = np.ones(level.grid.shape, dtype=bool) if keep is None else _spread(keep, grid, level.grid)
        grid = level.grid
        cells = np.flatnonzero(keep)
        values = _contrast(partial(_at, level, cells), query)
        similarity = np.full(grid.shape, -1, dtype=np.float32)
        passed = values >= settings.similarity_threshold
        similarity.flat[cells[passed]] = values[passed]
        keep = similarity >= settings.similarity_threshold
    return similarity, grid


def _at(level: Features, cells: NDArray[np.int64], query: NDArray[np.float32]) -> NDArray[np.float32]:
    return level.similarity_at(query, cells)


def _spread(keep: NDArray[np.bool_], coarse: CellGrid, fine: CellGrid) -> NDArray[np.bool_]:
    """The kept cells of a coarse grid as a mask on a finer one: each fine cell asks the cell it lies in."""
    index = [
        np.minimum(((np.arange(n) + 0.5) * f / c).astype(int), m - 1)
        for n, f, c, m in zip(fine.shape, fine.stride, coarse.stride, coarse.shape, strict=True)
    ]
    return keep[np.ix_(*index)]


def propose(
    features: Features,
    query: Query,
    radius_vox: float,
    settings: MatchingSettings,
    roi: NDArray[np.bool_] | None = None,
) -> Proposals:
    """Points that resemble the query, best first, none nearer than the suppression radius to a better one.

    Parameters
    ----------
    radius_vox : radius of the object in voxels
    roi : bool, shape of the tomogram; only points inside are proposed. None: everywhere.

    Raises
    ------
    InputError
        The region of interest has another shape than the tomogram.

    Notes
    -----
    A particle is as wide as its radius, so the map is averaged over a part of it (`settings.smoothing`) before
    maxima are taken: one particle gives one maximum, at its middle. Where the encoder knows centres of
    particles, a proposal's score is its similarity times a small power of how much of a centre it is
    (`CENTRE_POWER`); otherwise the similarity alone. In the hierarchy it is the similarity times the share of
    the cells around it that passed.
    """
    if roi is not None and features.grid.extent not in (None, roi.shape):
        raise InputError(
            f"region of interest: expected the tomogram's shape {features.grid.extent}, found {roi.shape}",
            hint="Give a region at the tomogram's voxel spacing",
        )
    weight: FloatVolume | None
    if settings.strategy == "hierarchical":
        raw, grid = hierarchical_map(features, query, settings)
        sigma = [settings.smoothing * radius_vox / s for s in grid.stride]
        similarity, weight = _smooth_within(raw, raw >= settings.similarity_threshold, sigma)
    else:
        raw, grid = similarity_map(features, query), features.grid
        sigma = [settings.smoothing * radius_vox / s for s in grid.stride]
        similarity = ndimage.gaussian_filter(raw, sigma, mode="nearest")
        weight = None if features.centre is None else centre_weight(features.centre, sigma)
    ranking = similarity if weight is None else np.maximum(similarity, 0) * weight
    peaks = local_maxima(ranking, [max(1.0, 0.5 * radius_vox / s) for s in grid.stride])
    if roi is not None:
        peaks = peaks[_inside(grid.clamp(grid.to_voxels(peaks)), roi)]
    at = tuple(peaks.T)
    order = np.argsort(-ranking[at], kind="stable")[:_CANDIDATES]
    found = Proposals(
        points=grid.clamp(grid.to_voxels(peaks[order])),
        similarity=similarity[at][order].astype(np.float64),
        score=ranking[at][order].astype(np.float64),
    )
    return suppress(found, settings.nms_radius * radius_vox)


class Search:
    """Proposes, and remembers the last answer: seeds of one tomogram alone are sought there once, not twice."""

    def __init__(self, settings: MatchingSettings) -> None:
        self._settings = settings
        self._last: tuple[weakref.ref[Features], tuple[bytes, bytes, float], Proposals] | None = None

    def propose(
        self, features: Features, query: Query, radius_vox: float, roi: NDArray[np.bool_] | None = None
    ) -> Proposals:
        """See `propose`."""
        asked = (query.positives.tobytes(), query.negatives.tobytes(), radius_vox)
        if roi is None and self._last is not None:
            where, before, found = self._last
            if where() is features and before == asked:
                return found
        found = propose(features, query, radius_vox, self._settings, roi)
        if roi is None:
            self._last = weakref.ref(features), asked, found
        return found


def _smooth_within(
    values: FloatVolume, where: NDArray[np.bool_], sigma: Sequence[float]
) -> tuple[FloatVolume, FloatVolume]:
    """Gaussian average over the cells that `where` holds, and the share of those in it; 0 elsewhere.

    What was rejected is unknown: it must not be averaged into a similarity. But a cell surrounded by others
    that passed is nearer to a particle's middle than one at the rim.
    """
    share = ndimage.gaussian_filter(where.astype(np.float32), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(where, values, np.float32(0)), sigma, mode="nearest")
    return np.where(where, total / np.maximum(share, np.float32(1e-6)), np.float32(0)), share * where


def centre_weight(centre: FloatVolume, sigma: Sequence[float]) -> FloatVolume:
    """Centre probability, blurred a little so that it and the similarity need not peak in the same cell."""
    blurred = ndimage.gaussian_filter(centre, [0.5 * s for s in sigma], mode="nearest")
    return np.asarray(np.clip(blurred, 1e-4, 1) ** CENTRE_POWER, dtype=np.float32)


def local_maxima(values: FloatVolume, reach: Sequence[float]) -> NDArray[np.int64]:
    """Cells that are the highest within `reach` cells on each axis, shape (N, 3).

    Plateaus, as a constant map has them, hold no maximum.
    """
    size = [2 * int(np.ceil(r)) + 1 for r in reach]
    highest = ndimage.maximum_filter(values, size=size, mode="nearest")
    lowest = ndimage.minimum_filter(values, size=3, mode="nearest")
    return np.argwhere((values == highest) & (values > lowest))


def suppress(proposals: Proposals, radius_vox: float) -> Proposals:
    """Non-maximum suppression: best first, drop what lies closer than `radius_vox` to one that stays."""
    ordered = proposals[np.argsort(-proposals.score, kind="stable")]
    return ordered[survivors(ordered.points.zyx, radius_vox)]


def scores_near(proposals: Proposals, points: VoxelPoints, radius_vox: float) -> FloatArray:
    """The best score of the proposals within `radius_vox` of each point; points without one are left out.

    Where no point has a proposal near it, the best of all stands for them; 0 where there are none.
    """
    if len(proposals) == 0:
        return np.zeros(1)
    near = cKDTree(proposals.points.zyx).query_ball_point(points.zyx, radius_vox)
    found = [float(proposals.score[index].max()) for index in near if index]
    return np.array(found or [float(proposals.score.max())])


def nearest_within(points: VoxelPoints, wanted: VoxelPoints, radius_vox: float) -> NDArray[np.int64]:
    """Indices of the points nearest to each wanted place, where one lies within `radius_vox` of it."""
    if len(points) == 0 or len(wanted) == 0:
        return np.zeros(0, dtype=np.int64)
    distance, index = cKDTree(points.zyx).query(wanted.zyx)
    return np.unique(np.asarray(index)[np.asarray(distance) <= radius_vox])


def _inside(points: VoxelPoints, roi: NDArray[np.bool_]) -> NDArray[np.bool_]:
    nearest = np.clip(np.floor(points.zyx + 0.5).astype(int), 0, np.array(roi.shape) - 1)
    return np.asarray(roi[tuple(nearest.T)], dtype=bool)
