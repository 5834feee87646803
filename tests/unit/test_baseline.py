"""The trivial baseline finds blobs of the right size and nothing clever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copick_cryosam.baseline import blob_response, otsu_threshold, pick_blobs, propose_blobs
from copick_cryosam.errors import DataError, InputError

CENTRES = np.array([[10, 12, 14], [12, 40, 20], [24, 20, 45], [8, 46, 46]])


def spheres(centres: np.ndarray, radius: float, noise: float, seed: int = 0) -> np.ndarray:
    shape = (32, 60, 60)
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    volume = np.random.default_rng(seed).normal(0, noise, shape)
    for centre in centres:
        volume += ((grid - centre) ** 2).sum(-1) <= radius**2
    return volume.astype(np.float32)


def test_finds_spheres_in_noise() -> None:
    picks = pick_blobs(spheres(CENTRES, 4.0, 0.5), 4.0)
    assert len(picks) == len(CENTRES)
    nearest = np.linalg.norm(picks.points.zyx[:, None] - CENTRES[None], axis=2)
    assert nearest.min(axis=0).max() <= 1.5
    assert (np.diff(picks.score) <= 0).all()
    np.testing.assert_array_equal(picks.score, picks.similarity)


def test_response_is_largest_for_the_right_radius() -> None:
    centre = np.array([[16, 30, 30]])
    heights = [blob_response(spheres(centre, radius, 0.3), 5.0)[16, 30, 30] for radius in (3.0, 5.0, 8.0)]
    assert heights[1] == max(heights)
    assert heights[1] > 10


def test_kernel_changes_sign_at_the_radius() -> None:
    radius = 7.0
    volume = np.zeros((65, 65, 65), dtype=np.float32)
    volume[32, 32, 32] = 1000.0
    volume += np.random.default_rng(0).normal(0, 1e-4, volume.shape).astype(np.float32)
    profile = blob_response(volume, radius)[32, 32, 32:]
    assert profile[6] > 0 > profile[8]


def test_no_two_picks_are_closer_than_the_suppression_radius() -> None:
    noise = np.random.default_rng(1).normal(size=(24, 40, 40)).astype(np.float32)
    for factor in (1.0, 2.0):
        found = propose_blobs(noise, 3.0, nms_radius=factor).points.zyx
        distances = np.linalg.norm(found[:, None] - found[None], axis=2) + np.eye(len(found)) * 99
        assert len(found) > 5
        assert distances.min() >= 3.0 * factor


def test_response_does_not_depend_on_scale_or_offset() -> None:
    volume = spheres(CENTRES, 4.0, 0.3)
    np.testing.assert_allclose(blob_response(volume, 4.0), blob_response(volume * 7 + 3000, 4.0), atol=2e-3)


@given(st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=12))
def test_otsu_maximises_the_variance_between_classes(values: list[float]) -> None:
    array = np.array(values)

    def between(threshold: float) -> float:
        high, low = array[array >= threshold], array[array < threshold]
        return len(high) * len(low) * (high.mean() - low.mean()) ** 2 if len(high) and len(low) else 0.0

    best = max(between(value) for value in values)
    assert between(otsu_threshold(array)) == pytest.approx(best)


def test_otsu_keeps_all_of_one_value() -> None:
    assert otsu_threshold(np.array([2.0, 2.0])) == 2.0
    assert otsu_threshold(np.empty(0)) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="constant"):
        propose_blobs(np.full((8, 8, 8), 3.7, dtype=np.float32), 2.0)
    padded = np.zeros((40, 40, 40), dtype=np.float32)
    padded[20, 20, 20] = 1.0
    with pytest.raises(DataError, match="more than half"):
        propose_blobs(padded, 1.0)
    with pytest.raises(DataError, match="NaN"):
        propose_blobs(np.full((8, 8, 8), np.nan, dtype=np.float32), 2.0)
    with pytest.raises(InputError, match="radius"):
        propose_blobs(np.zeros((8, 8, 8), dtype=np.float32), 0.0)
    with pytest.raises(InputError, match="3 axes"):
        propose_blobs(np.zeros((8, 8), dtype=np.float32), 2.0)
