"""Peaks of maps drawn by hand: one particle each, of the right size, whatever touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copick_cryosam import discovery
from copick_cryosam.detections import Detections
from copick_cryosam.discovery import Evidence, decide, expected_f1_threshold
from copick_cryosam.errors import InputError
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.pretraining.train_embednet import centre_heat

SHAPE = (40, 61, 80)


def drawn(centres: list[tuple[float, float, float]], radii: list[float]) -> DenseFeatures:
    """Features as a perfect net gives them, at stride 2; kinds differ by the first channel: their radius."""
    cells = tuple(-(-n // 2) for n in SHAPE)
    padded = tuple(2 * n for n in cells)
    points, sizes = np.array(centres).reshape(-1, 3), np.array(radii)
    heat = centre_heat(points, sizes, padded)
    index = np.indices(padded).reshape(3, -1).T
    inside = np.zeros(padded, dtype=np.float32)
    radius = np.zeros(padded, dtype=np.float32)
    for centre, size in zip(points, sizes, strict=True):
        mine = (np.linalg.norm(index - centre, axis=1) <= size).reshape(padded)
        inside[mine], radius[mine] = 1, size

    def halved(values: np.ndarray) -> np.ndarray:
        return values.reshape(cells[0], 2, cells[1], 2, cells[2], 2).mean(axis=(1, 3, 5))

    values = torch.from_numpy(np.stack([halved(radius), np.ones(cells)]).astype(np.float16))
    return DenseFeatures(
        values=values,
        grid=CellGrid(cells, (2.0, 2.0, 2.0), SHAPE),
        centre=halved(heat).astype(np.float32),
        foreground=halved(inside).astype(np.float32),
    )


@dataclass
class By:
    """Of maps drawn by hand the peaks' heights tell enough; the shipped nets know embeddings of EmbedNet."""

    probability: Callable[[np.ndarray], np.ndarray] = lambda rows: np.clip(np.exp(rows[:, 0]), 0, 1) ** 1.5
    odds: Callable[[np.ndarray], np.ndarray] = lambda rows: np.log(rows[:, 1] + 1e-3)


def detect(features: DenseFeatures, **options: Any) -> Detections:
    return discovery.detect(features, By(), **options)


TRUTH = [(12.0, 15.0, 14.0), (20.0, 40.0, 20.0), (20.0, 24.0, 55.0), (25.0, 50.0, 62.0)]
SIZES = [5.0, 8.0, 14.0, 9.0]


def test_each_particle_is_found_once_with_its_size() -> None:
    found = detect(drawn(TRUTH, SIZES))
    assert len(found) == 4
    distance = np.linalg.norm(found.points.zyx[:, None] - np.array(TRUTH), axis=2)
    assert (distance.min(axis=0) < 2.5).all()
    order = distance.argmin(axis=0)
    np.testing.assert_allclose(found.radius_vox[order], SIZES, rtol=0.25)
    np.testing.assert_allclose(found.diameter_vox[order], 2 * np.array(SIZES), rtol=0.15)
    np.testing.assert_allclose(found.features[order, 0], SIZES, rtol=0.1)
    assert (np.diff(found.probability) <= 0).all()
    assert found.probability.min() > 0.5


def test_neighbours_come_with_what_lies_between_them() -> None:
    found = detect(drawn([(20, 30, 20), (20, 30, 36), (20, 30, 56)], [8, 8, 8]))
    # all three lie in a row, the outer two too far apart to be parts of one
    assert len(found) == 3
    assert len(found.pairs) == len(found.odds) == 2
    ((middle, _),) = [one for one in zip(*np.unique(found.pairs, return_counts=True), strict=True) if one[1] == 2]
    assert abs(found.points.zyx[middle, 2] - 36) < 2.5
    near = np.abs(np.diff(found.points.zyx[found.pairs, 2], axis=1)).argmin()
    assert found.odds[near] == found.odds.max()
    assert found.odds.max() > found.odds.min() + 0.1


def test_touching_particles_are_two() -> None:
    assert len(detect(drawn([(20, 30, 25), (20, 30, 42)], [8, 8]))) == 2
    assert len(detect(drawn([(20, 30, 25), (20, 30, 39)], [9, 5]))) == 2


def test_two_peaks_without_a_dip_are_one() -> None:
    features = drawn([(20, 30, 33), (20, 30, 49)], [13, 13])
    assert len(detect(features)) == 2
    # halves of one particle: what lies between them is a centre nearly as much as they are
    assert features.centre is not None
    features.centre[9:12, 14:17, 16:26] = np.maximum(features.centre[9:12, 14:17, 16:26], 0.75)
    assert len(detect(features)) == 1


def test_what_is_kept_can_be_limited() -> None:
    features = drawn(TRUTH, SIZES)
    assert len(detect(features, max_picks=2)) == 2
    np.testing.assert_allclose(detect(features, radius_range=(120, 200)).radius_vox, [14], rtol=0.2)
    # the same maps of a tomogram of 20 Å voxels: all radii are twice as large, beyond the ladder but for one
    assert detect(features, voxel_spacing=20.0).radius_vox.max() <= 9


def test_what_is_judged_a_particle_is_kept_whatever_its_height() -> None:
    features = drawn(TRUTH, SIZES)
    large = discovery.detect(features, By(lambda rows: np.where(rows[:, 1] > np.log(11), 0.9, 0.05)))
    np.testing.assert_allclose(large.radius_vox, [14], rtol=0.2)
    ranked = discovery.detect(features, By(lambda rows: 0.9 - 0.01 * rows[:, 1]))
    # the smallest first
    assert (np.diff(ranked.radius_vox) >= 0).all()
    assert (np.diff(ranked.probability) <= 0).all()


def test_nothing_gives_an_empty_result() -> None:
    found = detect(drawn([], []))
    assert len(found) == 0
    assert found.features.shape == (0, 2)
    assert found.diameter_vox.shape == (0,)


def test_an_encoder_without_centres_is_refused() -> None:
    features = DenseFeatures(values=torch.zeros(1, 4, 4, 4), grid=CellGrid((4, 4, 4), (2, 2, 2)))
    with pytest.raises(InputError, match="recognises particles"):
        detect(features)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_threshold_is_the_best_of_all(values: list[float]) -> None:
    probability = np.array(values)
    threshold = expected_f1_threshold(probability)

    def expected(t: float) -> float:
        kept = probability[probability >= t]
        return float(2 * kept.sum() / (len(kept) + probability.sum()))

    assert expected(threshold) >= max(expected(t) for t in values) - 1e-9


def test_polarity_is_decided_or_asked_for() -> None:
    clear, unclear = (
        Evidence(foreground=(1000.0, 900.0), doubtful=(100.0, 450.0)),
        Evidence(foreground=(1000.0, 1000.0), doubtful=(400.0, 450.0)),
    )
    assert decide([clear]) == "light"
    assert decide([Evidence(foreground=clear.foreground[::-1], doubtful=clear.doubtful[::-1])]) == "dark"
    with pytest.raises(InputError, match="--polarity dark or --polarity light"):
        decide([unclear])
    with pytest.raises(InputError, match="polarity"):
        decide([Evidence(foreground=(0, 0), doubtful=(0, 0))])
