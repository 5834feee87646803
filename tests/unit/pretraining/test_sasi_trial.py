"""A trial of SaSi on simulated tomograms: the same again, scored rightly, and pseudo-labels beside the points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining import sasi_trial
from copick_cryosam.pretraining.ranking import Ranked
from copick_cryosam.pretraining.sasi_trial import LEARNED, TESTED, DataSet, draw_data_set, run_variant
from copick_cryosam.pretraining.shapes import Shape, random_shape
from copick_cryosam.sasi.settings import sasi_settings
from copick_cryosam.types import VoxelPoints

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (24, 48, 48)
RADII = (3.0, 3.5, 4.0, 4.5)
QUICK = sasi_settings({"window": 16, "training": {"steps": 1, "batch": 2, "patience": None}})


def four(_templates: Path | None, rng: np.random.Generator, *, tuning: bool) -> list[Shape]:
    """Small kinds, of which some fit into a tiny scene."""
    assert tuning
    return [random_shape(rng, family="globule", radius=radius, name=f"globule-{radius}") for radius in RADII]


@pytest.fixture(scope="module")
def drawn() -> list[DataSet]:
    """The data set of seed 0, the same again, and that of seed 1."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sasi_trial, "SHAPE", SIZE)
        patched.setattr(sasi_trial, "shapes_of", four)
        return [draw_data_set(None, seed, 5, tuning=True) for seed in (0, 0, 1)]


@pytest.fixture
def data(drawn: list[DataSet], monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setattr(sasi_trial, "SHAPE", SIZE)
    return drawn[0]


def flat(one: DataSet) -> np.ndarray:
    """Every number of a data set."""
    truths = [at for kind in one.truths for at in kind]
    clicks = [np.append(at, t) for kind in one.points for t, at in kind]
    return np.concatenate([np.ravel(each) for each in (*one.volumes, *truths, *clicks)])


def test_a_seed_draws_the_same_data_again_and_another_seed_others(drawn: list[DataSet]) -> None:
    first, again, other = (flat(one) for one in drawn)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[: SIZE[0]], other[: SIZE[0]])


def test_points_are_nested_and_beside_particles_of_the_learned_tomograms(data: DataSet) -> None:
    assert [one.shape for one in data.volumes] == [SIZE] * (LEARNED + TESTED)
    for kind, clicks in enumerate(data.points):
        assert 1 <= len(clicks) <= 5
        for t, at in clicks:
            assert t < LEARNED
            assert np.linalg.norm(data.truths[kind][t] - at, axis=1).min() < data.shapes[kind].radius
    few, more = (
        [{(n, *at) for n, at in zip(one.labelled.classes, one.labelled.points.zyx, strict=True)} for one in some]
        for some in (data.labelled(1), data.labelled(2))
    )
    assert sum(map(len, few)) == len(data.shapes)
    assert all(a <= b for a, b in zip(few, more, strict=True))
    assert [one.name for one in data.classes] == [shape.name for shape in data.shapes]


Picks = list[list[tuple[VoxelPoints, np.ndarray]]]


def picks(data: DataSet, kinds: Sequence[int], share: float = 1.0) -> Picks:
    """A share of the true centres of `kinds`, in each searched tomogram."""
    whole = [[data.truths[kind][t] for kind in kinds] for t in range(LEARNED, LEARNED + TESTED)]
    some = [[at[: round(share * len(at))] for at in each] for each in whole]
    return [[(VoxelPoints(at), np.linspace(1, 0.5, len(at))) for at in each] for each in some]


def test_scores_are_1_for_the_truth_and_0_for_nothing_or_other_kinds(data: DataSet) -> None:
    kinds = range(len(data.shapes))
    assert sasi_trial._scored(data, picks(data, kinds))["f1"] == 1
    assert sasi_trial._scored(data, picks(data, kinds, 0))["f1"] == 0
    assert sasi_trial._scored(data, picks(data, [*kinds[1:], 0]))["f1"] < 0.2
    half = sasi_trial._scored(data, picks(data, kinds, 0.5))
    assert 0.5 < half["f1"] < 0.8
    assert half["kinds"].keys() == {shape.name for shape in data.shapes}


def candidates(data: DataSet, rng: np.random.Generator) -> list[list[Ranked]]:
    """Picks anywhere of every kind in the learned tomograms, each tenth of them on a click, of any precision."""
    clicks = np.array([at for kind in data.points for _, at in kind])

    def some() -> Ranked:
        at = rng.uniform(0, SIZE, size=(60, 3))
        at[::10] = clicks[rng.integers(len(clicks), size=6)]
        precision = np.sort(rng.uniform(0.6, 1, size=60))[::-1]
        return Ranked(points=VoxelPoints(at), score=precision, expected_precision=precision, kept=60)

    return [[some() for _ in data.shapes] for _ in range(LEARNED)]


def test_pseudo_labels_are_sure_and_never_within_a_radius_of_a_point(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = candidates(data, np.random.default_rng(3))
    monkeypatch.setattr(sasi_trial.CryoSAM, "from_preset", lambda *_, **__: None)
    monkeypatch.setattr(sasi_trial, "_search", lambda *_, **__: found)
    human = data.labelled(3)
    radii = np.array([0.0, *(shape.radius for shape in data.shapes)])
    for before, after in zip(human, sasi_trial._with_pseudo(data, human, 3), strict=True):
        some, count = after.labelled, len(before.labelled)
        np.testing.assert_array_equal(some.points.zyx[:count], before.labelled.points.zyx)
        assert (some.weights[:count] == 1).all()
        assert len(some) > count + 3
        assert some.origins == ("click",) * count + ("CryoSAM",) * (len(some) - count)
        pseudo = some.weights[count:]
        assert (pseudo >= sasi_trial.MIN_PRECISION).all()
        assert (pseudo < 1).all()
        assert (np.diff(pseudo) <= 0).all()
        apart = np.linalg.norm(some.points.zyx[:, None] - some.points.zyx, axis=2)
        least = radii[np.maximum(some.classes[:, None], some.classes)]
        later = np.arange(len(some)) >= count
        pairs = later[:, None] & ~np.eye(len(some), dtype=bool)
        assert (apart > least)[pairs].all()


@pytest.mark.parametrize("variant", ["supervised only", "CryoSAM", "ladder"])
def test_a_trial_gives_scores_that_json_can_hold(data: DataSet, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CryoSAM.from_preset
    monkeypatch.setattr(sasi_trial.CryoSAM, "from_preset", lambda _, **named: whole("fake", **named))
    found: dict[str, Any] = json.loads(json.dumps(run_variant(data, variant, 2, 0, QUICK)), parse_constant=pytest.fail)
    assert 0 <= found["f1"] <= 1
    assert ("best_step" in found) == (variant != "CryoSAM")
    if variant != "CryoSAM":
        assert found["points"] >= sum(len(one.labelled) for one in data.labelled(2))
