"""Lists of instances: scores, sizes, duplicates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.config import InstanceSettings
from copick_cryosam.errors import SeedError
from copick_cryosam.instances import best_first, drop_duplicates, drop_wrong_sizes, from_masks, select
from copick_cryosam.segmenters.fusing import CrossPlaneMask
from copick_cryosam.types import Instance, Pose


def instance(at=(0, 0, 0), size=1, score=1.0, precision=math.nan) -> Instance:
    """A rod of `size` voxels along x whose first voxel is `at`."""
    return Instance(
        mask=np.ones((1, 1, size), dtype=bool),
        origin_zyx=at,
        prompt_zyx=tuple(float(n) for n in at),
        similarity=1.0,
        confidence=1.0,
        score=score,
        expected_precision=precision,
    )


NOTHING = Instance(
    mask=np.zeros((0, 0, 0), dtype=bool),
    origin_zyx=(1, 2, 3),
    prompt_zyx=(1.0, 2.0, 3.0),
    similarity=1.0,
    confidence=0.0,
    score=0.0,
)


def cross_plane_mask(confidence: float) -> CrossPlaneMask:
    return CrossPlaneMask(
        mask=np.ones((2, 1, 1), dtype=bool),
        origin_zyx=(4, 5, 6),
        prompt_zyx=(4.4, 5.0, 6.0),
        confidence=confidence,
        predicted_iou=confidence,
        agreement=1.0,
        planes=3,
        decodes=9,
    )


# --- scores -----------------------------------------------------------------------------------


def test_the_score_is_similarity_times_confidence():
    made = from_masks([cross_plane_mask(0.5), cross_plane_mask(0.9)], np.array([0.8, -0.2]), np.array([0.7, 0.1]))
    assert [one.score for one in made] == [pytest.approx(0.4), 0.0]
    assert [one.similarity for one in made] == [0.8, -0.2]
    assert [one.expected_precision for one in made] == [0.7, 0.1]
    assert made[0].origin_zyx == (4, 5, 6)
    assert made[0].prompt_zyx == (4.4, 5.0, 6.0)
    assert made[0].centroid_zyx == (4.5, 5.0, 6.0)


def test_without_calibration_the_expected_precision_is_unknown():
    (one,) = from_masks([cross_plane_mask(0.5)], np.array([0.8]))
    assert math.isnan(one.expected_precision)


def test_the_second_look_gives_the_score_and_the_pose():
    masks = [cross_plane_mask(0.5), cross_plane_mask(0.9)]
    poses = [Pose(rotation=np.eye(3), centre_zyx=(1.0, 2.0, k)) for k in range(2)]
    alike, scores = np.array([0.8, 0.4]), np.array([0.3, 0.6])
    made = from_masks(masks, alike, scores, scores=scores, poses=poses, rank_by="similarity")
    assert [one.score for one in made] == [0.3, 0.6]
    assert [one.similarity for one in made] == [0.8, 0.4]
    assert all(one.pose is pose for one, pose in zip(made, poses, strict=True))
    assert [one.score for one in from_masks(masks, alike, scores=scores)] == pytest.approx([0.15, 0.54])
    assert [one.pose for one in from_masks(masks, alike)] == [None, None]
    with pytest.raises(ValueError, match="zip"):
        from_masks(masks, alike, poses=poses[:1])


def test_masks_and_similarities_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        from_masks([cross_plane_mask(0.5)] * 2, np.array([0.8]), np.array([0.8, 0.7]))


def test_best_first_is_stable():
    some = [instance((0, 0, n), score=score) for n, score in enumerate((0.2, 0.9, 0.2, 0.9))]
    assert [one.origin_zyx[2] for one in best_first(some)] == [1, 3, 0, 2]


# --- sizes ------------------------------------------------------------------------------------


def test_sizes_are_compared_with_the_seeds_median():
    seeds = [instance(size=n) for n in (8, 10, 1000)] + [NOTHING]
    some = [instance(size=n) for n in (4, 5, 10, 20, 21)] + [NOTHING]
    kept = drop_wrong_sizes(some, seeds, InstanceSettings(size_range=(0.5, 2.0)))
    assert [one.size for one in kept] == [5, 10, 20]


def test_empty_masks_go_even_where_any_size_is_allowed():
    kept = drop_wrong_sizes([NOTHING, instance()], [instance(size=100)], InstanceSettings(size_range=(0.0, 10.0)))
    assert [one.size for one in kept] == [1]


@pytest.mark.parametrize("seeds", [[], [NOTHING]])
def test_seeds_without_a_mask_are_an_error(seeds):
    with pytest.raises(SeedError, match="seed masks: expected at least one that is not empty"):
        drop_wrong_sizes([instance()], seeds, InstanceSettings())


# --- duplicates -------------------------------------------------------------------------------


def greedy(instances: list[Instance], limit: float) -> list[Instance]:
    kept: list[Instance] = []
    for one in sorted(instances, key=lambda one: -one.score):
        here = np.array(one.centroid_zyx)
        if all(np.linalg.norm(here - other.centroid_zyx) >= limit for other in kept):
            kept.append(one)
    return kept


coordinate = st.integers(0, 12)
anywhere = st.tuples(coordinate, coordinate, coordinate)
some_instances = st.lists(
    st.builds(instance, at=anywhere, size=st.integers(1, 3), score=st.sampled_from([0.1, 0.2, 0.5, 0.9])), max_size=40
)


@effort(max_examples=150, deadline=None)
@given(some_instances, st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.5]), st.sampled_from([0.5, 1.0, 1.5]))
def test_duplicates_equal_the_brute_force_greedy(instances, radius, factor):
    kept = drop_duplicates(instances, radius, InstanceSettings(duplicate_radius=factor))
    expected = greedy(instances, radius * factor)
    assert [id(one) for one in kept] == [id(one) for one in expected]


@effort(max_examples=50, deadline=None)
@given(some_instances)
def test_removing_duplicates_twice_changes_nothing(instances):
    once = drop_duplicates(instances, 3.0, InstanceSettings())
    assert drop_duplicates(once, 3.0, InstanceSettings()) == once


def test_picks_at_exactly_the_radius_are_two():
    apart = [instance((0, 0, 0), score=0.9), instance((0, 0, 3), score=0.8)]
    assert len(drop_duplicates(apart, 3.0, InstanceSettings())) == 2
    assert len(drop_duplicates(apart, 3.01, InstanceSettings())) == 1


def test_a_dropped_instance_drops_nothing_itself():
    row = [instance((0, 0, x), score=score) for x, score in ((0, 0.9), (2, 0.8), (4, 0.7))]
    assert [one.origin_zyx[2] for one in drop_duplicates(row, 3.0, InstanceSettings())] == [0, 4]


# --- all of it --------------------------------------------------------------------------------


def test_selecting_nothing_gives_nothing():
    assert select([], [instance(size=3)], 2.0, InstanceSettings()) == []


def test_selecting_runs_them_in_turn():
    seeds = [instance(size=3)]
    some = [
        instance((0, 0, 0), size=90, score=1.0),  # too large, and must not suppress the next
        instance((0, 0, 44), size=3, score=0.9),
        instance((0, 0, 45), size=3, score=0.8),  # a duplicate
        instance((9, 0, 0), size=3, score=0.7),
        instance((9, 9, 9), size=3, score=0.6),
    ]
    picked = select(some, seeds, 2.0, InstanceSettings(max_picks=2))
    assert [one.score for one in picked] == [0.9, 0.7]
