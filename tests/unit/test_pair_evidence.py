"""What lies between two peaks, on maps drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.pair_evidence import REACH, neighbours, pair_evidence
from copick_cryosam.ranker import PAIRS, load_peak_rankers
from copick_cryosam.types import VoxelPoints

CELLS = (12, 21, 40)
LEFT, RIGHT, FAR = (10.5, 20.5, 16.5), (10.5, 20.5, 40.5), (10.5, 20.5, 64.5)


def features(stride: float = 2.0) -> DenseFeatures:
    """Foreground from the left over the right peak, where the centre map does not dip but to a half; a gap beyond."""
    foreground, centre = np.zeros(CELLS, np.float32), np.zeros(CELLS, np.float32)
    foreground[:, :, 4:25] = 1
    foreground[:, :, 29:] = 1
    centre[:, :, 4:25] = 0.4
    for z, y, x in (LEFT, RIGHT, FAR):
        centre[int(z) // 2, int(y) // 2, int(x) // 2] = 0.8
    return DenseFeatures(
        values=torch.zeros(4, *CELLS),
        grid=CellGrid(CELLS, (stride,) * 3, tuple(round(stride * n) for n in CELLS)),
        centre=centre,
        foreground=foreground,
    )


def rows(one: DenseFeatures, scale: float = 1.0) -> np.ndarray:
    # where cells of two voxels have these places
    points = one.grid.to_voxels(CellGrid(CELLS, (2.0,) * 3, tuple(2 * n for n in CELLS)).to_cells(VoxelPoints(PLACES)))
    looks = np.array([[1, 0, 0, 0], [3, 4, 0, 0], [0, 0, 1, 0]], dtype=np.float32)
    return pair_evidence(one, points, scale * np.array([6.0, 12.0, 12.0]), looks, np.array([[0, 1], [1, 2]]))


PLACES = np.array([LEFT, RIGHT, FAR])


def test_parts_have_particle_between_them() -> None:
    joined, apart = rows(features())
    np.testing.assert_allclose(joined, [np.log(2), 1, 0.5, 0.6, np.log(np.sqrt(72))], rtol=1e-5)
    np.testing.assert_allclose(apart[[0, 2, 3, 4]], [0, 0, 0, np.log(12)], atol=1e-6)
    assert 0.4 < apart[1] < 0.8


def test_the_order_of_the_two_does_not_matter_nor_does_the_spacing() -> None:
    one = features()
    looks = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    radius = np.array([6.0, 12.0, 9.0])
    there, back = (
        pair_evidence(one, VoxelPoints(PLACES), radius, looks, np.array(pairs)) for pairs in ([[0, 1]], [[1, 0]])
    )
    np.testing.assert_allclose(there, back, rtol=1e-5)
    np.testing.assert_allclose(rows(features(1.0), 0.5), rows(one), rtol=1e-5)


@given(st.integers(0, 500), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_neighbours_are_those_within_reach(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points, radius = rng.uniform(0, 60, size=(count, 3)), rng.uniform(3, 12, size=count)
    expected = [
        [i, j]
        for i in range(count)
        for j in range(i + 1, count)
        if np.linalg.norm(points[i] - points[j]) < REACH * (radius[i] + radius[j])
    ]
    found = neighbours(VoxelPoints(points), radius)
    assert found.shape == (len(expected), 2)
    assert found.tolist() == expected


def test_no_pairs_are_no_rows_and_no_maps_are_refused() -> None:
    looks = np.zeros((3, 4), dtype=np.float32)
    none = np.empty((0, 2), dtype=np.int64)
    assert pair_evidence(features(), VoxelPoints(PLACES), np.ones(3), looks, none).shape == (0, PAIRS)
    without = DenseFeatures(values=torch.zeros(2, 4, 4, 4), grid=CellGrid((4, 4, 4), (2, 2, 2)))
    with pytest.raises(ValueError, match="foreground and centre maps"):
        pair_evidence(without, VoxelPoints(PLACES), np.ones(3), looks, none)


def test_the_shipped_net_tells_them_apart() -> None:
    joined, apart = load_peak_rankers().odds(rows(features()))
    assert joined > apart
    assert load_peak_rankers().odds(np.empty((0, PAIRS))).shape == (0,)
