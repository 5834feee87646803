"""Parts that keep their distance are one particle; particles that touch are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copick_cryosam import parts
from copick_cryosam.detections import Detections
from copick_cryosam.pair_evidence import neighbours
from copick_cryosam.parts import owners
from copick_cryosam.suppression import survivors
from copick_cryosam.types import VoxelPoints

RADIUS = 9.0


def detections(points: np.ndarray, odds: float, kinds: Sequence[int] | None = None, noise: float = 0.05) -> Detections:
    """Picks of one size, best first, all pairs of neighbours as likely; kinds differ by the first channels."""
    count = len(points)
    rng = np.random.default_rng(count)
    looks = np.eye(8)[np.zeros(count, dtype=int) if kinds is None else np.asarray(kinds)]
    radius = np.full(count, RADIUS)
    pairs = neighbours(VoxelPoints(points), radius)
    return Detections(
        points=VoxelPoints(points),
        probability=np.linspace(0.99, 0.5, count),
        radius_vox=radius,
        diameter_vox=2 * radius,
        features=(looks + rng.normal(scale=noise, size=looks.shape)).astype(np.float32),
        pairs=pairs,
        odds=np.full(len(pairs), odds),
    )


def scattered(rng: np.random.Generator, count: int, apart: float, edge: float = 200.0) -> np.ndarray:
    """Points in a box, none closer than `apart`."""
    points = rng.uniform(0, edge, size=(20 * count, 3))
    return points[survivors(points, apart)][:count]


def halves(rng: np.random.Generator, centres: np.ndarray, distance: float, noise: float = 0.2) -> np.ndarray:
    axis = rng.normal(size=centres.shape)
    axis *= distance / 2 / np.linalg.norm(axis, axis=1, keepdims=True)
    points = np.stack([centres - axis, centres + axis], axis=1).reshape(-1, 3)
    return points + rng.normal(scale=noise, size=points.shape)


def nothing_owned(found: Sequence[Detections]) -> bool:
    return all((owner == np.arange(len(one))).all() for one, owner in zip(found, owners(found), strict=True))


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_halves_are_told_by_each_other_among_particles_of_other_kinds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, singles = [], 6
    for count in (5, 4):
        centres = scattered(rng, count + singles, 60, 300)
        points = np.concatenate([halves(rng, centres[:count], 18), centres[count:]])
        found.append(detections(points, -1.5, [0] * 2 * count + [1, 2, 3] * 2))
    # of the last particle one half was missed
    found[1] = detections(np.delete(found[1].points.zyx, 7, axis=0), -1.5, [0] * 7 + [1, 2, 3] * 2)
    first, second = owners(found)
    assert first.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, *range(10, 16)]
    assert second.tolist() == [0, 0, 2, 2, 4, 4, *range(6, 13)]


@given(st.integers(0, 1000), st.integers(2, 120))
@settings(max_examples=60, deadline=None)
def test_particles_that_touch_are_no_parts(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    edge = float(rng.uniform(60, 300))
    points = [scattered(rng, count, 18, edge), scattered(rng, count, 18, edge)]
    # a gap between any two
    assert nothing_owned([detections(one, -4) for one in points])


def test_rows_and_lattices_are_no_parts() -> None:
    rng = np.random.default_rng(0)
    row = np.arange(20)[:, None] * [0, 0, 18.0]
    sheet = np.stack(np.meshgrid([0.0], np.arange(6) * 18.0, np.arange(6) * 18.0), axis=-1).reshape(-1, 3)
    for points in (row, sheet):
        noisy = points + rng.normal(scale=0.3, size=points.shape)
        # one pair alone would not be taken for parts either
        assert nothing_owned([detections(noisy, -1)])


def test_pairs_at_any_distance_are_no_parts() -> None:
    rng = np.random.default_rng(4)
    centres = scattered(rng, 12, 60, 400)
    distances = np.geomspace(12, 26, 12)
    points = np.concatenate([halves(rng, one[None], far) for one, far in zip(centres, distances, strict=True)])
    assert nothing_owned([detections(points, -2)])
    # at one distance they would be
    assert not nothing_owned([detections(halves(rng, centres, 18), -2)])


def test_pairs_of_other_looks_say_nothing() -> None:
    rng = np.random.default_rng(5)
    centres = scattered(rng, 10, 60, 400)
    points, kinds = halves(rng, centres, 18), np.repeat(np.arange(5), 4)
    assert nothing_owned([detections(points, -1.5, kinds)])
    assert not nothing_owned([detections(points, -1.5, np.repeat([0, 1], 10))])


def test_what_is_sure_by_itself_needs_no_others() -> None:
    points = np.array([[10.0, 10, 10], [10, 10, 30], [10, 10, 50], [90, 90, 90]])
    found = detections(points, 2.0, [0, 1, 2, 3])
    # what belongs to one particle is no particle for another to belong to
    assert owners([found, found])[1].tolist() == [0, 0, 2, 3]


def test_the_surest_pick_owns() -> None:
    rng = np.random.default_rng(6)
    points = halves(rng, scattered(rng, 6, 60, 300), 18)
    mixed = rng.permutation(len(points))
    (owner,) = owners([detections(points[mixed], 0.5)])
    assert (owner <= np.arange(len(points))).all()
    partner = np.argsort(mixed)[mixed ^ 1]
    np.testing.assert_array_equal(owner, np.minimum(np.arange(len(points)), partner))


def test_of_many_picks_some_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    found = [detections(halves(rng, scattered(rng, 12, 60, 400), 18), -1.5) for _ in range(6)]
    exact = owners(found)
    assert all((owner[1::2] == owner[::2]).all() for owner in exact)
    for name, some in (("_COUNTED", 30), ("_COMPARED", 40), ("_AT_ONCE", 5)):
        monkeypatch.setattr(parts, name, some)
    for one, other in zip(owners(found), exact, strict=True):
        np.testing.assert_array_equal(one, other)
    row = np.arange(60)[:, None] * [0, 0, 18.0]
    assert nothing_owned([detections(row, -1)])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_are_left_alone(count: int) -> None:
    points = np.random.default_rng(1).uniform(0, 20, size=(count, 3))
    empty = detections(points[:0], -1)
    assert nothing_owned([detections(points, -1), empty])
    assert nothing_owned([empty])
    assert owners([]) == []
