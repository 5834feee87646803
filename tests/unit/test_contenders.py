"""Candidates of several tomograms counted as one crowd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copick_cryosam.aligned import Aligned, Candidates
from copick_cryosam.alignment import Aligner
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.contenders import CENTRAL, LEAST, LIKELY, SURE, SUREST, Contenders, Crowd
from copick_cryosam.types import VoxelPoints
from copick_cryosam.wedge import Wedge


def contenders(count: int, seed: int, boxes: Candidates | None = None) -> Contenders:
    """Random ones; every third is a member."""
    rng = np.random.default_rng(seed)
    if boxes is None:
        boxes = Candidates(
            boxes=torch.from_numpy(rng.normal(size=(count, 1, 1, 1))),
            spectra=torch.zeros((count, 1)),
            amplitude=torch.ones(1),
            wedge=Wedge(-60, 60),
        )
    aligned = Aligned.none(count)
    return Contenders(
        boxes=boxes,
        parts=rng.normal(size=(count, 6)).astype(np.float32),
        centre=rng.random(count),
        sure=rng.random(count),
        members=np.arange(0, count, 3),
        aligned=Aligned(score=rng.random(count), rotations=aligned.rotations, shifts=rng.normal(size=(count, 3))),
    )


@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_indices_count_through_all_tomograms(counts):
    tomograms = [contenders(count, k) for k, count in enumerate(counts)]
    crowd = Crowd(tomograms)
    assert len(crowd) == sum(counts)
    places = [(k, i) for k, count in enumerate(counts) for i in range(count)]
    for index, (k, i) in enumerate(places):
        boxes, which = crowd.place(index)
        assert boxes is tomograms[k].boxes
        assert which == i
        assert crowd.sure[index] == tomograms[k].sure[i]
        assert crowd.aligned.score[index] == tomograms[k].aligned.score[i]
        np.testing.assert_array_equal(crowd.parts[index], tomograms[k].parts[i])
    assert [places[i] for i in crowd.members] == [place for place in places if place[1] % 3 == 0]
    assert crowd.likely.tolist() == list(range(len(crowd)))
    for searched in range(1, len(counts) + 1):
        assert Crowd(tomograms, searched).searched.tolist() == list(range(sum(counts[:searched])))


@given(
    count=st.integers(0, 3 * LIKELY),
    central=st.integers(0, 3 * LIKELY),
    sure=st.integers(0, 3 * LIKELY),
    seed=st.integers(0, 5),
)
def test_what_is_neither_a_centre_nor_like_the_seeds_is_not_likely(count, central, sure, seed):
    rng = np.random.default_rng(seed)
    centre, surely = rng.uniform(0, 0.99 * CENTRAL, count), rng.uniform(0, 0.99 * SURE, count)
    centre[:central] += CENTRAL
    surely[::-1][:sure] += SURE
    members = np.flatnonzero(rng.random(count) < 0.02)
    likely = replace(contenders(count, seed), centre=centre, sure=surely, members=members).likely
    best_centres = np.argsort(-centre)[: min(LIKELY, max(LEAST, min(central, count)))]
    surest = np.argsort(-surely)[: min(SUREST, sure)]
    np.testing.assert_array_equal(likely, sorted({*best_centres, *surest, *members}))


def test_only_the_likely_of_other_tomograms_are_kept():
    many = replace(contenders(3 * LIKELY, 5), members=np.arange(0, 3 * LIKELY, 40))
    some = many.only_likely()
    likely = many.likely
    assert LIKELY <= len(likely) <= LIKELY + SUREST + len(many.members)
    assert len(likely) < len(many)
    assert len(some) == len(likely)
    np.testing.assert_array_equal(some.centre, many.centre[likely])
    np.testing.assert_array_equal(some.boxes.boxes, many.boxes.boxes[likely])
    np.testing.assert_array_equal(some.aligned.shifts, many.aligned.shifts[likely])
    assert likely[some.members].tolist() == np.intersect1d(likely, many.members).tolist()
    # those that are left are all likely, and stay it
    np.testing.assert_array_equal(some.likely, np.arange(len(some)))


def test_each_is_aligned_by_the_wedge_of_its_own_tomogram():
    aligner = Aligner(6, AlignmentSettings(rotations=60), torch.device("cpu"))
    volume = torch.from_numpy(np.random.default_rng(2).normal(size=(30, 40, 50)).astype(np.float32))
    points = [VoxelPoints(np.array(some)) for some in ([[12, 15, 20.0], [15, 20, 25]], [[15, 22, 31.0]])]
    looks = [
        aligner.look(volume, some, wedge) for some, wedge in zip(points, (Wedge(-60, 60), Wedge(-40, 40)), strict=True)
    ]
    crowd = Crowd([contenders(len(some), k, boxes=some) for k, some in enumerate(looks)])
    template = aligner.template(looks[0], 0)
    (turned,) = aligner.turn([template])
    found = crowd.align(aligner, turned, np.array([2, 0]))
    apart = [aligner.align(template, looks[1]), aligner.align(template, looks[0].only(0))]
    np.testing.assert_allclose(found.score, np.concatenate([one.score for one in apart]), rtol=1e-6)
    np.testing.assert_array_equal(found.rotations, np.concatenate([one.rotations for one in apart]))
    other = replace(looks[1], wedge=Wedge(-60, 60))
    assert abs(aligner.align(template, other).score[0] - found.score[0]) > 1e-3


@pytest.mark.parametrize("count", [0, 2])
def test_nobody_is_aligned_where_nobody_is_asked(count):
    aligner = Aligner(6, AlignmentSettings(rotations=60), torch.device("cpu"))
    volume = torch.from_numpy(np.random.default_rng(2).normal(size=(30, 40, 50)).astype(np.float32))
    boxes = aligner.look(volume, VoxelPoints([[12, 15, 20.0], [15, 20, 25]]), Wedge(-60, 60))
    crowd = Crowd([contenders(2, 0, boxes=boxes)])
    (turned,) = aligner.turn([aligner.template(boxes, 0)])
    assert len(crowd.align(aligner, turned, np.arange(count))) == count
