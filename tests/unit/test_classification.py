"""Two kinds that look alike to the nets, of known poses: averages of their own part them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.aligned import Aligned
from copick_cryosam.alignment import Aligner
from copick_cryosam.class_evidence import margin
from copick_cryosam.classification import (
    DENSE,
    GROUPS,
    Class,
    Shared,
    apart,
    dense_groups,
    judge,
    share_out,
)
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.contenders import Contenders, Crowd
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.types import VoxelPoints
from copick_cryosam.unit_vectors import to_unit
from copick_cryosam.wedge import Wedge

WEDGE = Wedge(-60, 60)
SHAPE = (25, 125, 153)
PLACES = np.stack(np.meshgrid([12.0], np.arange(13, 120, 24), np.arange(13, 150, 25), indexing="ij"), -1).reshape(-1, 3)
EACH = 11
"""Particles of each of two kinds; what is left of the places is empty."""
SEED, OURS, THEIRS = 0, np.arange(1, EACH), np.arange(EACH, 2 * EACH)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes():
    return [random_shape(np.random.default_rng(seed), family="globule", radius=7, name="globule") for seed in (5, 11)]


@pytest.fixture(scope="module")
def aligner(shapes) -> Aligner:
    return Aligner(shapes[0].radius, AlignmentSettings(rotations=600), torch.device("cpu"))


@pytest.fixture(scope="module")
def boxes(aligner, shapes):
    """All places of a noisy volume: eleven of one kind, eleven of the other, and nothing at the rest."""
    rng = np.random.default_rng(3)
    volume = rng.normal(scale=0.5, size=SHAPE).astype(np.float32)
    kinds = np.repeat([0, 1], EACH)
    for place, kind, rotation in zip(
        PLACES, kinds, Rotation.random(2 * EACH, random_state=2).as_matrix(), strict=False
    ):
        density = shapes[kind].density
        half = density.shape[0] // 2
        middle = np.full(3, half)
        turned = ndimage.affine_transform(density, rotation.T, middle - rotation.T @ middle, order=1)
        box = tuple(slice(max(int(c) - half, 0), int(c) + half + 1) for c in place)
        fits = volume[box].shape
        start = [max(half - int(c), 0) for c in place]
        volume[box] += turned[tuple(slice(a, a + n) for a, n in zip(start, fits, strict=True))]
    return aligner.look(torch.from_numpy(volume), VoxelPoints(PLACES), WEDGE)


def compete(aligner, boxes, sure, candidates) -> Shared:
    some = boxes.only(candidates)
    sure = sure[candidates]
    template = aligner.template(boxes, SEED)
    seed = (boxes, SEED, np.eye(3), np.zeros(3))
    return share_out(
        aligner, Crowd([contenders(aligner, some, features()[candidates], sure, template)]), [seed], template
    )


def contenders(aligner, boxes, parts, sure, template) -> Contenders:
    return Contenders(
        boxes=boxes,
        parts=parts,
        centre=np.ones(len(boxes)),
        sure=sure,
        members=np.flatnonzero(sure > 0.5),
        aligned=aligner.align(template, boxes),
    )


def features() -> np.ndarray:
    """Features of all places: the kinds and the empty places differ a little."""
    rng = np.random.default_rng(1)
    kinds = np.repeat([0, 1, 2], [EACH, EACH, len(PLACES) - 2 * EACH])
    own = rng.normal(size=12) + rng.normal(size=(3, 12))[kinds]
    return (own + 0.3 * rng.normal(size=own.shape)).astype(np.float32)


def test_look_alikes_are_parted(aligner, boxes):
    """The first look believes in some of both kinds as much; only averages tell which is which."""
    sure = np.full(len(PLACES), 0.02)
    sure[OURS[:5]] = sure[THEIRS[:2]] = 0.7
    candidates = np.arange(1, len(PLACES))
    shared = compete(aligner, boxes, sure, candidates)
    ours, theirs = np.isin(candidates, OURS), np.isin(candidates, THEIRS)
    members = shared.seeds.members
    assert ours[members].sum() >= 8
    assert not theirs[members].any()
    after, correlation = margin(shared.fits), shared.fits[0]
    assert after[ours].min() > after[theirs].max() + 0.05
    apart_by, plainly_by = (some[ours].mean() - some[theirs].mean() for some in (after, correlation))
    assert apart_by > 1.3 * plainly_by


def test_a_class_of_the_same_kind_is_dissolved(aligner, boxes):
    """Particles like the seeds of which nobody is sure make a group at first, but none that competes."""
    candidates = np.concatenate([OURS, np.arange(2 * EACH, len(PLACES))])
    sure = np.full(len(PLACES), 0.3)
    sure[OURS[:2]], sure[2 * EACH :] = 0.6, 0.001
    shared = compete(aligner, boxes, sure, candidates)
    ours = np.isin(candidates, OURS)
    members = shared.seeds.members
    assert ours[members].sum() >= 8
    assert ours[members].mean() > 0.8


def test_members_are_judged_by_the_half_that_they_are_not_in(aligner, boxes):
    noise = np.arange(2 * EACH, len(PLACES))
    aligned = aligner.align(aligner.template(boxes, int(noise[0])), boxes)
    poses = [(boxes, int(i), aligned.rotations[i], aligned.shifts[i]) for i in noise]
    made = aligner.halved(poses)
    one = Class(members=noise, seeds=(), template=made.whole, halves=made.halves)
    assert one.half_of(0).tolist() == noise[::2].tolist()
    asked = np.arange(EACH, len(PLACES))
    everyone = contenders(aligner, boxes, features(), np.zeros(len(PLACES)), made.whole)
    judged, whole = judge(aligner, one, Crowd([everyone]), asked), everyone.aligned
    # what the average holds of each of them would speak for it
    assert (judged.score[noise] < whole.score[noise] - 0.05).all()
    np.testing.assert_allclose(judged.score[THEIRS], whole.score[THEIRS], atol=1e-6)
    np.testing.assert_array_equal(judged.score[:EACH], -1)
    halves = [aligner.align(half, boxes).score for half in made.halves]
    np.testing.assert_allclose(judged.score[noise[::2]], halves[1][noise[::2]], atol=1e-6)
    np.testing.assert_allclose(judged.score[noise[1::2]], halves[0][noise[1::2]], atol=1e-6)


@pytest.mark.parametrize("sure", [0.1, 0.9])
@pytest.mark.parametrize("count", [1, 3])
def test_few_candidates_have_nobody_to_compete_with(aligner, boxes, sure, count):
    candidates = np.arange(1, 1 + count)
    shared = compete(aligner, boxes, np.full(len(PLACES), sure), candidates)
    assert shared.fits.shape == (1 + GROUPS, count)
    assert np.isfinite(shared.fits[0]).all()
    assert np.isnan(shared.fits[1:]).all()


def test_the_densest_groups_come_first_and_hold_no_more_than_is_free():
    rng = np.random.default_rng(2)
    centres = to_unit(rng.normal(size=(GROUPS + 2, 40)))
    spread = np.geomspace(0.004, 0.2, len(centres))
    parts = np.concatenate([c + s * rng.normal(size=(DENSE + 2, 40)) for c, s in zip(centres, spread, strict=True)])
    everyone = np.arange(len(parts))
    kind = everyone // (DENSE + 2)
    groups = dense_groups(parts.astype(np.float32), everyone, everyone)
    assert [kind[group].tolist() for group in groups] == [[k] * DENSE for k in range(GROUPS)]
    without = dense_groups(parts.astype(np.float32), everyone[kind != 1], everyone)
    assert [int(kind[group[0]]) for group in without] == [0, *range(2, GROUPS + 1)]
    assert len(np.unique(np.concatenate(groups))) == GROUPS * DENSE
    assert dense_groups(parts.astype(np.float32), everyone[: DENSE - 1], everyone) == []


def test_how_far_two_classes_are_apart():
    def fit(scores):
        every = np.arange(4)
        nowhere = Aligned.none(4)
        return nowhere.put(every, replace(nowhere, score=np.array(scores)))

    def members(*which):
        return Class(members=np.array(which, dtype=np.int64), seeds=(), template=None, halves=None)

    to_seeds, to_other = fit([0.5, 0.6, 0.2, 0.1]), fit([0.4, 0.4, 0.5, 0.6])
    assert apart(members(0, 1), to_seeds, members(2, 3), to_other) == pytest.approx(0.4 + 0.15)
    assert apart(members(), to_seeds, members(2, 3), to_other) == pytest.approx(0.8)


def in_two(boxes, which) -> list[np.ndarray]:
    """Indices of the odd and of the even ones of some places."""
    return [which[k::2] for k in range(2)]


def test_together_few_of_each_are_parted_better_than_alone(aligner, boxes):
    """Four of each kind in each of two tomograms: the competing average of one alone is of four particles."""
    sure = np.full(len(PLACES), 0.02)
    sure[OURS[:4]] = sure[THEIRS[:2]] = 0.7
    template = aligner.template(boxes, SEED)
    seed = (boxes, SEED, np.eye(3), np.zeros(3))
    whole = np.concatenate([OURS[:8], THEIRS[:8], np.arange(2 * EACH, len(PLACES))])
    tomograms = [
        contenders(aligner, boxes.only(some), features()[some], sure[some], template) for some in in_two(boxes, whole)
    ]
    together = share_out(aligner, Crowd(tomograms), [seed], template)
    assert together.fits.shape == (1 + GROUPS, len(tomograms[0]))
    ours, theirs = (np.isin(in_two(boxes, whole)[0], some) for some in (OURS, THEIRS))
    after = margin(together.fits)
    assert after[ours].min() > after[theirs].max() + 0.05
    alone = share_out(aligner, Crowd(tomograms[:1]), [seed], template)
    assert len(together.seeds) > len(alone.seeds)
    every = share_out(aligner, Crowd(tomograms, searched=2), [seed], template).fits
    np.testing.assert_allclose(every[:, : len(tomograms[0])], together.fits, atol=1e-5)
    of_second = [np.isin(in_two(boxes, whole)[1], some) for some in (OURS, THEIRS)]
    ours_there, theirs_there = (margin(every[:, len(tomograms[0]) :])[some] for some in of_second)
    assert ours_there.min() > theirs_there.max() + 0.05
    apart_by, alone_by = (some[ours].mean() - some[theirs].mean() for some in (after, margin(alone.fits)))
    assert apart_by > alone_by + 0.05
