"""The ranking learns: from evidence that tells, without a search's own truth, and the same twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from copick_cryosam.classification import GROUPS
from copick_cryosam.pretraining import train_ranker
from copick_cryosam.pretraining.searches import Search, save_searches
from copick_cryosam.pretraining.train_ranker import Training, fit, main, unseen
from copick_cryosam.ranker import FIRST, load_rankers

PARTS = 12
STEPS = 150
pytestmark = pytest.mark.usefixtures("one_thread")


def search(sample: int, rng: np.random.Generator, told: Callable[[np.ndarray], np.ndarray]) -> Search:
    """One in five is a particle; the first column is `told` of the truth."""
    count = 60
    truth = (np.arange(count) % 5 == 0).astype(float)
    first = rng.normal(size=(count, FIRST))
    first[:, 0] = told(truth)
    parts = rng.normal(size=(count, PARTS)).astype(np.float32)
    return Search(
        sample=f"searches-pool-sample-{sample:05d}",
        first=first,
        correlation=rng.normal(size=count),
        parts=parts,
        seed_parts=parts[0],
        fits=rng.normal(size=(count, 1 + GROUPS)),
        counts=np.ones(count, dtype=np.int64),
        averaged=1,
        members=1,
        seeds=1,
        truth=truth,
        lesson=np.ones(count, dtype=bool),
    )


def learned(searches: list[Search]) -> np.ndarray:
    net = fit([one.first for one in searches], searches, Training(steps=STEPS))
    return np.concatenate([net.probability(one.first) for one in searches])


def test_evidence_that_tells_is_learned_and_calibrated():
    rng = np.random.default_rng(0)
    searches = [search(i, rng, lambda truth: truth * 2 + rng.normal(size=len(truth))) for i in range(40)]
    found, truth = learned(searches), np.concatenate([one.truth for one in searches])
    assert found[truth == 1].mean() > found[truth == 0].mean() + 0.3
    assert found.mean() == pytest.approx(truth.mean(), abs=0.03)
    sure = found > 0.5
    assert truth[sure].mean() == pytest.approx(found[sure].mean(), abs=0.1)


def test_where_nothing_is_learned_the_truth_does_not_count():
    """Rows that are no lesson say the contrary, and are as many."""
    rng = np.random.default_rng(0)
    searches = [search(i, rng, lambda truth: truth * 3.0) for i in range(20)]
    half = np.arange(60) < 30
    turned = [replace(one, truth=np.where(half, one.truth, 1 - one.truth), lesson=half) for one in searches]
    found, truth = learned(turned), np.concatenate([one.truth for one in searches])
    assert found[truth == 1].min() > found[truth == 0].max()


def test_no_search_is_told_by_a_net_that_learned_from_its_sample():
    """Where the evidence is noise, a net knows its own samples by heart and nothing of others."""
    rng = np.random.default_rng(0)
    searches = [search(i // 2, rng, lambda truth: rng.normal(size=len(truth))) for i in range(12)]
    truth = np.concatenate([one.truth for one in searches])

    def gap(found: np.ndarray) -> float:
        return float(found[truth == 1].mean() - found[truth == 0].mean())

    by_heart = learned(searches)
    assert gap(by_heart) > 0.15
    assert abs(gap(np.concatenate(unseen([one.first for one in searches], searches, Training(steps=STEPS))))) < 0.05


def kept(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        one = search(i, rng, lambda truth: truth + rng.normal(size=len(truth)))
        save_searches(folder / f"{one.sample}.npz", [one, one])


def test_fit_writes_all_nets_and_the_same_ones_twice(tmp_path):
    kept(tmp_path)
    written = []
    for name in ("a", "b"):
        target = tmp_path / f"{name}.safetensors"
        main(["fit", "--out", str(tmp_path), "--weights", str(target), "--steps", "20"])
        written.append(load_file(target))
    assert set(written[0]) == set(train_ranker.Rankers().state_dict())
    for key, value in written[0].items():
        np.testing.assert_array_equal(value.numpy(), written[1][key].numpy())


@pytest.mark.parametrize(("keep", "learned_anew"), [("first", ("second", "third")), ("second", ("third",))])
def test_nets_are_learned_alone_beside_those_that_ship(tmp_path, keep, learned_anew):
    kept(tmp_path)
    target = tmp_path / "some.safetensors"
    main(["fit", "--keep", keep, "--out", str(tmp_path), "--weights", str(target), "--steps", "20"])
    written, shipped = load_file(target), load_rankers().state_dict()
    for key, value in written.items():
        if key == "curve.coefficients":
            np.testing.assert_array_equal(value.numpy(), [1, 1, 0])
            continue
        same = np.array_equal(value.numpy(), shipped[key].numpy())
        assert same != key.startswith(learned_anew), key


def test_searches_of_several_folders_are_learned_from_together(tmp_path):
    kept(tmp_path)
    folders = [tmp_path / "a", tmp_path / "b"]
    for k, path in enumerate(sorted(tmp_path.glob("searches-*.npz"))):
        folders[k % 2].mkdir(exist_ok=True)
        path.rename(folders[k % 2] / path.name)
    arguments = ["--weights", str(tmp_path / "some.safetensors"), "--steps", "20"]
    with pytest.raises(SystemExit, match="expected searches of at least 3 samples, found 2"):
        main(["fit", "--out", str(folders[0]), *arguments])
    main(["fit", "--out", *map(str, folders), *arguments])
    with pytest.raises(SystemExit):
        main(["collect", "--pool", str(tmp_path), "--out", *map(str, folders)])
