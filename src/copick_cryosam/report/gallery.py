"""A gallery of picks by score, and the seeds, each cut through its centre in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from copick_cryosam.report.model import RunReport
from copick_cryosam.report.planes import encode_image, grey_levels, outline, verdicts
from copick_cryosam.types import Instance, Volume

__all__ = ["GalleryGroup", "GalleryItem", "gallery", "groups_by_score", "seed_images"]

_PER_GROUP = 6
_SEEDS = 24
_MARGIN = 2.0
"""Half the edge of a crop in object radii."""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """A pick: its rank by score, a strip of its three central planes (xy, xz, yz) and its mask's outlines."""

    rank: int
    score: float
    confidence: float
    size_nm3: float
    position_angstrom: tuple[float, float, float]
    verdict: str
    image: str
    edge: int
    contours: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class GalleryGroup:
    title: str
    items: Sequence[GalleryItem]


def gallery(run: RunReport, volume: Volume) -> list[GalleryGroup]:
    """The best, the middle or borderline, and the worst picks of a run; no pick appears twice."""
    scores = np.array([one.score for one in run.instances], dtype=np.float64)
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    kinds = verdicts(run)
    return [
        GalleryGroup(title=title, items=[_item(run, volume, i, int(ranks[i]), kinds[i]) for i in members])
        for title, members in groups_by_score(scores, run.threshold, _PER_GROUP)
    ]


def groups_by_score(
    scores: NDArray[np.float64], threshold: float | None, per_group: int
) -> list[tuple[str, list[int]]]:
    """Titles and indices, best first, of at most three groups of at most `per_group` picks.

    The middle group lies nearest to the threshold where picks lie on both sides of it, and around the median
    score otherwise.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    best = order[:per_group]
    worst = order[per_group:][-per_group:]
    rest = order[len(best) : len(order) - len(worst)]
    crossed = threshold is not None and len(scores) > 0 and scores.min() < threshold <= scores.max()
    centre = threshold if crossed and threshold is not None else float(np.median(scores)) if len(scores) else 0.0
    near = set(sorted(rest, key=lambda i: abs(scores[i] - centre))[:per_group])
    middle = [i for i in rest if i in near]
    title = "Borderline: nearest to the threshold" if crossed else "Middle: around the median score"
    named = [("Best: highest scores", best), (title, middle), ("Worst: lowest scores", worst)]
    return [(name, members) for name, members in named if members]


def seed_images(run: RunReport, volume: Volume) -> list[str | None]:
    """A strip of the three planes (xy, xz, yz) through each seed, as a data URI; None after the first `_SEEDS`."""
    centres = np.floor(run.seeds.zyx + 0.5).astype(int)
    images: list[str | None] = [_strip(run, volume, centre)[0] for centre in centres[:_SEEDS]]
    return images + [None] * (len(centres) - len(images))


def _strip(run: RunReport, volume: Volume, centre: NDArray[np.int64]) -> tuple[str, int]:
    """The three planes through a voxel side by side, and the edge of each in voxels."""
    half = max(4, round(_MARGIN * run.radius_vox))
    crop = _crop(volume, centre - half, 2 * half + 1)
    low, high = np.nanpercentile(crop, (0.5, 99.5)) if np.isfinite(crop).any() else (0.0, 1.0)
    strip = np.concatenate([grey_levels(np.take(crop, half, axis=axis), low, high) for axis in range(3)], axis=1)
    return encode_image(strip, quality=85), 2 * half + 1


def _item(run: RunReport, volume: Volume, index: int, rank: int, verdict: str) -> GalleryItem:
    one = run.instances[index]
    centre = np.floor(np.array(one.centroid_zyx) + 0.5).astype(int)
    image, edge = _strip(run, volume, centre)
    half = edge // 2
    mask = _crop_mask(one, centre - half, edge)
    contours = [outline(np.take(mask, half, axis=axis), 0, axis * edge) for axis in range(3)]
    z, y, x = (value * run.grid.voxel_spacing for value in one.centroid_zyx)
    return GalleryItem(
        rank=rank,
        score=one.score,
        confidence=one.confidence,
        size_nm3=one.size * (run.grid.voxel_spacing / 10) ** 3,
        position_angstrom=(x, y, z),
        verdict=verdict,
        image=image,
        edge=edge,
        contours=[path for path in contours if path],
    )


def _crop(volume: Volume, start: NDArray[np.int64], edge: int) -> NDArray[np.float32]:
    """A lightly smoothed cube of `edge` voxels from `start`, NaN outside the volume."""
    crop = np.full((edge, edge, edge), np.nan, dtype=np.float32)
    low, high = np.maximum(start, 0), np.minimum(start + edge, volume.shape)
    if (high > low).all():
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        inside = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
        crop[inside] = gaussian_filter(np.asarray(volume[z, y, x], dtype=np.float32), 1.0)
    return crop


def _crop_mask(one: Instance, start: NDArray[np.int64], edge: int) -> NDArray[np.bool_]:
    mask = np.zeros((edge, edge, edge), dtype=bool)
    origin = np.array(one.origin_zyx)
    low, high = np.maximum(start, origin), np.minimum(start + edge, origin + one.mask.shape)
    if (high > low).all():
        target = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
        source = tuple(slice(int(a), int(b)) for a, b in zip(low - origin, high - origin, strict=True))
        mask[target] = one.mask[source]
    return mask
