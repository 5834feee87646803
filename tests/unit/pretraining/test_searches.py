"""What is kept of a search, and who may say what the second net sees."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from copick_cryosam.class_evidence import third_evidence
from copick_cryosam.classification import GROUPS
from copick_cryosam.evidence import second_evidence
from copick_cryosam.pretraining.searches import Search, read_searches, save_searches
from copick_cryosam.ranker import FIRST, SECOND, THIRD

PARTS = 12


def some_search(count: int, sample: str = "searches-pool-sample-00001", seed: int = 0) -> Search:
    rng = np.random.default_rng(seed)
    # as kept: half precision
    parts = rng.normal(size=(count, PARTS)).astype(np.float16).astype(np.float32)
    return Search(
        sample=sample,
        first=rng.normal(size=(count, FIRST)),
        correlation=rng.uniform(size=count),
        fits=np.where(np.arange(1 + GROUPS) < 4, rng.normal(size=(count, 1 + GROUPS)), np.nan),
        parts=parts,
        seed_parts=parts[0],
        counts=rng.integers(1, 4, size=count),
        averaged=3,
        members=5,
        seeds=2,
        truth=(rng.uniform(size=count) < 0.3).astype(float),
        lesson=rng.uniform(size=count) < 0.9,
    )


def test_searches_are_read_as_they_were_kept(tmp_path):
    kept = [some_search(7), some_search(12, seed=1)]
    save_searches(tmp_path / "searches-pool-sample-00001.npz", kept)
    save_searches(tmp_path / "searches-pool-sample-00002.npz", [])
    save_searches(tmp_path / "searches-pool-sample-00003.npz", [some_search(5, "searches-pool-sample-00003", seed=2)])
    found = read_searches(tmp_path)
    assert [one.sample for one in found] == [kept[0].sample] * 2 + ["searches-pool-sample-00003"]
    for before, after in zip(kept, found, strict=False):
        for field in fields(Search):
            np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name), err_msg=field.name)


def test_what_was_cut_off_while_it_was_written_is_not_read(tmp_path):
    (tmp_path / "searches-pool-sample-00001.partial").write_bytes(b"half of a file")
    assert read_searches(tmp_path) == []


@pytest.mark.parametrize("count", [3, 40])
def test_the_evidence_is_that_of_the_second_look(count):
    search = some_search(count)
    sure = np.random.default_rng(5).uniform(size=count)
    context = np.repeat(np.arange(count), search.counts)
    found = search.second(sure)
    assert found.shape == (count, SECOND)
    wanted = second_evidence(search.first, search.correlation, search.parts, search.seed_parts, sure, 3, context)
    np.testing.assert_array_equal(found, wanted)
    third = search.third(sure)
    assert third.shape == (count, THIRD)
    assert np.isfinite(third).all()
    np.testing.assert_array_equal(third, third_evidence(search.first, sure, search.fits.T, 5, context))
