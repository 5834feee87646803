"""A seed that does not agree with the others is named, and no other one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from copick_cryosam.compute.diagnosing import recorded, remarks
from copick_cryosam.diagnosis import SeedDiagnosis, SeedEvidence, Surroundings, diagnose, surroundings_of
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.types import VoxelPoints

CHANNELS = 16


def directions(count: int, seed: int, towards: int | None = None, spread: float = 0.15) -> NDArray[np.float32]:
    """Unit-like features, shape (N, C): scattered around one axis, or anywhere."""
    values = np.random.default_rng(seed).normal(size=(count, CHANNELS))
    if towards is not None:
        values = spread * values + 2 * np.eye(CHANNELS)[towards]
    return values.astype(np.float32)


def evidence(features: NDArray[np.float32], run: str = "A", masked: NDArray[np.bool_] | None = None) -> SeedEvidence:
    """Seeds of one run, whose surroundings are like themselves."""
    masked = np.ones(len(features), dtype=bool) if masked is None else masked
    return SeedEvidence(
        run=run,
        points=VoxelPoints(np.arange(3 * len(masked), dtype=np.float64).reshape(-1, 3)),
        masked=masked,
        features=features,
        surroundings=Surroundings(
            around=np.repeat(features[np.minimum(np.cumsum(masked) - masked, len(features) - 1), None], 3, axis=1),
            elsewhere=directions(40, 99),
        ),
    )


def verdicts(found: list[SeedDiagnosis]) -> list[str]:
    return [one.verdict for one in found]


@pytest.mark.parametrize("count", [3, 5, 12])
def test_the_one_that_differs_is_named(count: int) -> None:
    features = directions(count, 0, towards=0)
    assert verdicts(diagnose([evidence(features)])) == ["agrees"] * count
    features[1] = directions(1, 1, towards=5)[0]
    found = diagnose([evidence(features)])
    assert [one.suspicious for one in found] == [index == 1 for index in range(count)]
    wrong = found[1]
    assert wrong.position_zyx == (3, 4, 5)
    assert wrong.found is False
    assert wrong.agreement < 0.5 < wrong.expected  # type: ignore[operator]
    assert wrong.nearness < 0.45  # type: ignore[operator]
    (line,) = remarks(found, 10.0)
    assert line.startswith(f"seed 2 of run A at (50, 40, 30) Å does not agree with the other {count - 1}: agreement ")
    assert "nothing like them within one radius" in line


def test_something_like_the_others_beside_a_wrong_seed_is_found() -> None:
    features = directions(4, 0, towards=0)
    features[2] = directions(1, 1, towards=5)[0]
    given = evidence(features)
    given.surroundings.around[2, 1] = features[0]
    found = diagnose([given])
    assert verdicts(found) == ["agrees", "agrees", "disagrees", "agrees"]
    assert found[2].found
    assert "something like them within one radius" in remarks(found, 1.0)[0]


def test_seeds_of_all_runs_are_compared_and_none_without_a_mask_counts() -> None:
    right = directions(4, 0, towards=0)
    first = evidence(right[:2], "A", np.array([True, False, True]))
    second = evidence(np.stack([directions(1, 1, towards=5)[0], *right[2:]]), "B")
    found = diagnose([first, second])
    assert [(one.run, one.index, one.verdict) for one in found] == [
        ("A", 0, "agrees"),
        ("A", 1, "no mask"),
        ("A", 2, "agrees"),
        ("B", 0, "disagrees"),
        ("B", 1, "agrees"),
        ("B", 2, "agrees"),
    ]
    assert found[1].agreement is None
    lines = remarks(found, 2.0)
    assert len(lines) == 2
    assert lines[0].startswith("seed 2 of run A at (10, 8, 6) Å could not be segmented")
    record = recorded(found, 2.0)
    assert [len(record[run]) for run in ("A", "B")] == [3, 3]
    assert record["A"][1] == {
        "position": [10.0, 8.0, 6.0],
        "verdict": "no mask",
        "found": True,
        **dict.fromkeys(("agreement", "expected", "random", "nearness")),
    }


def test_two_can_only_disagree_with_each_other_and_one_says_nothing() -> None:
    pair = np.concatenate([directions(1, 0, towards=0), directions(1, 1, towards=5)])
    found = diagnose([evidence(pair)])
    assert verdicts(found) == ["disagrees"] * 2
    (line,) = remarks(found, 10.0)
    assert line.startswith("seed 1 of run A at (20, 10, 0) Å and seed 2 of run A at (50, 40, 30) Å do not agree")
    assert verdicts(diagnose([evidence(directions(2, 0, towards=0))])) == ["agrees"] * 2
    alone = diagnose([evidence(pair[:1])])
    assert verdicts(alone) == ["alone"]
    assert remarks(alone, 10.0) == []
    assert diagnose([]) == []


def test_all_different_means_all_named() -> None:
    found = diagnose([evidence(np.eye(CHANNELS, dtype=np.float32)[:6])])
    assert verdicts(found) == ["disagrees"] * 6
    assert len(remarks(found, 1.0)) == 6


def test_degenerate_features_give_numbers_and_name_nobody() -> None:
    same = np.ones((4, CHANNELS), dtype=np.float32)
    given = evidence(same)
    for surroundings in (given.surroundings, Surroundings(around=np.stack([same] * 4), elsewhere=same)):
        found = diagnose([replace(given, surroundings=surroundings)])
        assert verdicts(found) == ["agrees"] * 4
    given = evidence(np.zeros((3, CHANNELS), dtype=np.float32))
    for one in diagnose([given]):
        assert np.isfinite([one.agreement, one.expected, one.random, one.nearness]).all()  # type: ignore[list-item]


def test_surroundings_of_an_odd_shape_and_of_seeds_at_its_corners() -> None:
    shape = (9, 22, 31)
    values = torch.zeros((2, 5, 11, 16))
    values[0] = 1
    values[1, :, :3, :3] = 1
    features = DenseFeatures(values=values, grid=CellGrid((5, 11, 16), (2, 2, 2), shape))
    points = VoxelPoints(np.array([[0.0, 0, 0], [8, 21, 30]]))
    found = surroundings_of(features, points, 3.0, shape)
    assert found.around.shape[::2] == (2, 2)
    np.testing.assert_allclose(found.around[0, 0], [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.around[1, :, 1], 0, atol=1e-6)
    assert np.isfinite(found.elsewhere).all()
    assert (found.elsewhere[:, 1] < 0.99).all()  # two radii from the seed
    again = surroundings_of(features, points, 3.0, shape)
    np.testing.assert_array_equal(found.elsewhere, again.elsewhere)
    everywhere = surroundings_of(features, points, 40.0, shape)
    assert len(everywhere.elsewhere) > 0
