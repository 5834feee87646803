"""Matching the query through the tomogram: similarity, non-maximum suppression, proposals (eqs. 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from copick_cryosam.config import MatchingSettings
from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, Features
from copick_cryosam.suppression import survivors
from copick_cryosam.types import FloatArray, Proposals, VoxelPoints

FloatVolume = NDArray[np.float32]
CENTRE_POWER = 0.1
"""How much being a centre counts beside the similarity: enough to part equals, too little to hide a faint particle."""
_CANDIDATES = 20_000
"""Peaks looked at before suppression, so that a noisy map cannot take all memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """What is looked for, pooled over all seeds of all tomograms (eq. 4).

    Attributes
    ----------
    positive : float32, shape (C,)
    negatives : float32, shape (K, C): what must not be found; K may be 0
    """

    positive: NDArray[np.float32]
    negatives: NDArray[np.float32]


def merge_queries(pooled: Sequence[tuple[NDArray[np.float32], int]], negatives: Sequence[NDArray[np.float32]]) -> Query:
    """One query from the pooled features of several tomograms, weighted by their numbers of voxels."""
    if not pooled:
        raise ValueError("query: expected at least one tomogram with seeds, found none")
    weights = np.array([count for _, count in pooled], dtype=np.float64)
    positive = np.average(np.stack([vector for vector, _ in pooled]), axis=0, weights=weights)
    found = np.stack(negatives) if negatives else np.zeros((0, positive.size))
    return Query(positive=positive.astype(np.float32), negatives=found.astype(np.float32))


def similarity_map(features: Features, query: Query) -> FloatVolume:
    """Cosine similarity of every cell with the query, less that with the nearest negative where it is over 0."""
    similarity = features.similarity(query.positive)
    return similarity - _nearest([features.similarity(negative) for negative in query.negatives], similarity)


def _nearest(negatives: Sequence[FloatVolume], like: FloatVolume) -> FloatVolume:
    """The highest of the similarities with negatives, at least 0.

    A cell that resembles a negative as much as the object ends at 0, however many tomograms have negatives.
    """
    nearest = np.zeros_like(like)
    for one in negatives:
        np.maximum(nearest, one, out=nearest)
    return nearest


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
        values = level.similarity_at(query.positive, cells)
        values -= _nearest([level.similarity_at(negative, cells) for negative in query.negatives], values)
        similarity = np.full(grid.shape, -1, dtype=np.float32)
        passed = values >= settings.similarity_threshold
        similarity.flat[cells[passed]] = values[passed]
        keep = similarity >= settings.similarity_threshold
    return similarity, grid


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


def _inside(points: VoxelPoints, roi: NDArray[np.bool_]) -> NDArray[np.bool_]:
    nearest = np.clip(np.floor(points.zyx + 0.5).astype(int), 0, np.array(roi.shape) - 1)
    return np.asarray(roi[tuple(nearest.T)], dtype=bool)
