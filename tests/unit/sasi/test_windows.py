"""Windows are cut where they should be, of all classes, and hold what lies there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copick_cryosam.errors import SeedError
from copick_cryosam.sasi.held_out import split
from copick_cryosam.sasi.labels import IGNORE
from copick_cryosam.sasi.points import LabelledPoints, ParticleClass, TrainingTomogram, choose_shots
from copick_cryosam.sasi.settings import TrainingSettings, sasi_settings
from copick_cryosam.sasi.windows import Cutter, cut_out
from copick_cryosam.types import VoxelPoints

CLASSES = [ParticleClass(name="a", radius_vox=2.0), ParticleClass(name="b", radius_vox=3.0)]
PLAIN = sasi_settings(
    {
        "augment": {"shift": 0, "rotation": "none", "flip": False},
        "infill": {"enabled": False},
        "training": {"anywhere": 0},
    }
)


def tomogram(classes: list[int], *, weights: list[float] | None = None, seed: int = 0) -> TrainingTomogram:
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(20, 24, 28)).astype(np.float32)
    points = rng.uniform([2, 2, 2], [17, 21, 25], size=(len(classes), 3))
    return TrainingTomogram(
        name="run",
        volume=volume,
        labelled=LabelledPoints(
            points=VoxelPoints(points),
            classes=np.array(classes, dtype=np.int64),
            weights=np.ones(len(classes)) if weights is None else np.array(weights),
            origins=("test",) * len(classes),
        ),
    )


def cutter(one: TrainingTomogram, settings=PLAIN, edge: int = 8) -> Cutter:  # type: ignore[no-untyped-def]
    return Cutter([one], CLASSES, settings, edge, torch.device("cpu"))


def test_classes_take_turns_however_unequal_their_numbers() -> None:
    windows = cutter(tomogram([1] * 9 + [2])).labelled(8, torch.Generator().manual_seed(0))
    middle = windows.labels[:, 3, 3, 3]
    assert sorted(middle.tolist()) == [1] * 4 + [2] * 4


def test_points_of_weight_zero_are_never_drawn_and_teach_nothing() -> None:
    one = tomogram([1, 1, 2], weights=[0, 1, 1])
    one.labelled.points.zyx.setflags(write=True)
    one.labelled.points.zyx[:2] = [[10, 12, 8], [10, 12, 14]]
    windows = cutter(one, edge=16).labelled(6, torch.Generator().manual_seed(0))
    held = (windows.labels == 1) & (windows.weights == 0)
    assert bool(held.any())
    assert {tuple(at) for at in torch.nonzero(windows.weights[:, 7, 7, 7] == 0).tolist()} == set()


def test_a_window_holds_what_lies_around_its_point() -> None:
    one = tomogram([1])
    z, y, x = np.floor(one.labelled.points.zyx[0] + 0.5).astype(int)
    window = cutter(one).around([(0, 0)])
    assert window.volume[0, 0, 3, 3, 3] == one.volume[z, y, x]
    assert window.labels[0, 3, 3, 3] == 1


@given(
    corner=st.tuples(*[st.integers(-9, 12)] * 3),
    edge=st.integers(1, 9),
)
def test_what_lies_beyond_the_tomogram_is_its_mean(corner: tuple[int, int, int], edge: int) -> None:
    volume = np.arange(1, 5 * 6 * 7 + 1, dtype=np.float32).reshape(5, 6, 7)
    into = np.zeros((edge, edge, edge), dtype=np.float32)
    cut_out(volume, corner, into)
    padded = np.pad(volume, 24)
    z, y, x = (c + 24 for c in corner)
    np.testing.assert_array_equal(into, padded[z : z + edge, y : y + edge, x : x + edge])


def test_two_views_are_of_one_place_and_cover_the_tomogram() -> None:
    made = cutter(tomogram([1]))
    first, second = made.views(5, torch.Generator().manual_seed(1))
    assert torch.equal(first, second)  # nothing moves
    starts = {tuple(int(c) - 3 for c in at) for _, at in made._everywhere}
    assert {z for z, _, _ in starts} == {0, 4, 8, 12}
    assert max(x for *_, x in starts) == 28 - 8


def test_filled_windows_keep_the_strength_of_noise_and_hold_more_labels() -> None:
    one = tomogram([1, 2] * 2)
    filled = sasi_settings(
        {"infill": {"enabled": True}, "augment": {"rotation": "quarter"}, "training": {"anywhere": 0}}
    )
    generator = torch.Generator().manual_seed(0)
    plain = cutter(one, sasi_settings({"infill": {"enabled": False}}, filled), 12).labelled(16, generator)
    mixed = cutter(one, filled, 12).labelled(16, generator)
    weak = cutter(one, sasi_settings({"infill": {"keep_noise": False}}, filled), 12).labelled(16, generator)
    assert (mixed.labels > 0).float().mean() > 1.5 * (plain.labels > 0).float().mean()
    assert float(weak.volume.std()) < 0.8 * float(plain.volume.std())
    assert float(mixed.volume.std()) == pytest.approx(float(plain.volume.std()), rel=0.15)


def test_windows_far_from_points_can_be_left_out_of_learning() -> None:
    ignoring = sasi_settings({"labels": {"ignore_unlabelled": True, "near": 1.5}}, PLAIN)
    windows = cutter(tomogram([1, 2]), ignoring, 16).labelled(4, torch.Generator().manual_seed(0))
    assert {IGNORE, 0} < set(windows.labels.unique().tolist())


def test_held_out_points_are_a_share_of_what_humans_vouch_for() -> None:
    one = tomogram([1] * 10 + [2] * 3 + [1] * 5, weights=[1.0] * 13 + [0.9] * 5)
    made = split([one], CLASSES, TrainingSettings(held_out_from=4))
    assert len(made.held_out) == 2  # of ten; a class of three keeps all of them
    assert all(i < 10 for _, i in made.held_out)
    assert (made.tomograms[0].labelled.weights == 0).sum() == 2
    assert (one.labelled.weights == 0).sum() == 0
    assert split([one], CLASSES, TrainingSettings(held_out=0, held_out_from=4)).held_out == []
    assert split([one], CLASSES, TrainingSettings(held_out_from=20)).held_out == []


def test_shots_are_drawn_by_the_seed_and_are_points_of_humans() -> None:
    one = tomogram([1] * 10 + [2] * 10 + [1], weights=[1.0] * 20 + [0.9])
    (few,) = choose_shots([one], CLASSES, 3, 0)
    assert np.bincount(few.labelled.classes[few.labelled.weights == 1]).tolist() == [0, 3, 3]
    assert (few.labelled.weights < 1).sum() == 1
    (same,), (other,) = (choose_shots([one], CLASSES, 3, seed) for seed in (0, 1))
    np.testing.assert_array_equal(same.labelled.points.zyx, few.labelled.points.zyx)
    assert not np.array_equal(other.labelled.points.zyx, few.labelled.points.zyx)
    with pytest.raises(SeedError, match="a: expected at least 11 points, found 10"):
        choose_shots([one], CLASSES, 11, 0)
    with pytest.raises(SeedError, match="b: expected at least one point, found none"):
        choose_shots([tomogram([1])], CLASSES, None, 0)


def test_a_share_of_the_windows_is_cut_anywhere() -> None:
    some = sasi_settings({"training": {"anywhere": 0.5}}, PLAIN)
    one = tomogram([1, 2])
    one.volume[...] = np.arange(one.volume.size).reshape(one.volume.shape)
    windows = cutter(one, some).labelled(8, torch.Generator().manual_seed(0))
    at = np.floor(one.labelled.points.zyx + 0.5).astype(int)
    middles = one.volume[tuple(at.T)].tolist()
    assert sum(value in middles for value in windows.volume[:, 0, 3, 3, 3].tolist()) == 4


def test_pasted_copies_are_whole_and_labelled() -> None:
    pasting = sasi_settings({"infill": {"enabled": True, "mode": "paste"}, "augment": {"rotation": "quarter"}}, PLAIN)
    one = tomogram([1, 2] * 2)
    one.volume[...] = 0
    at = np.stack(np.indices(one.volume.shape), axis=-1)
    for point, number in zip(one.labelled.points.zyx, one.labelled.classes, strict=True):
        one.volume[np.linalg.norm(at - point, axis=-1) <= CLASSES[number - 1].radius_vox] = number
    whole = sasi_settings({"labels": {"radius": 1.0}, "augment": {"shift": 0.25}}, pasting)
    windows = cutter(one, whole, 12).labelled(6, torch.Generator().manual_seed(0))
    assert torch.equal(windows.volume[:, 0] > 0, windows.labels > 0)
