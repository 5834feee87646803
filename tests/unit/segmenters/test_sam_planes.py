"""Planes become embeddings when they are asked for, once each, in batches that fit."""

from __future__ import annotations

import pytest
import torch

from copick_cryosam.batching import Batches
from copick_cryosam.errors import DeviceError
from copick_cryosam.foundation.pictures import Intensities
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.segmenters.sam_planes import SamPlanes

CPU = torch.device("cpu")
SHAPE = (9, 20, 31)


class CountingTrunk(SamTrunk):
    """Counts the pictures of each call, and has memory for so many."""

    room = 100

    def __init__(self, sam) -> None:
        super().__init__(sam, CPU)
        self.calls: list[int] = []
        self.pictures: list[torch.Tensor] = []

    def encode(self, pictures, padding="native", batch=None):
        self.calls.append(len(pictures))
        self.pictures.append(pictures)
        if len(pictures) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(pictures, padding, batch)


@pytest.fixture
def trunk(official_sam) -> CountingTrunk:
    return CountingTrunk(official_sam.random_sam(64, depth=2, width=48, global_layers=(1,)))


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))


def planes_of(volume, axis, trunk, channels="repeat", batch=4, padding="native") -> SamPlanes:
    return SamPlanes(volume, axis, trunk, 64, padding, channels, Batches(batch, "planes", "segmenter.encode_batch"))


def test_nothing_is_encoded_before_it_is_asked_for_and_nothing_twice(volume, trunk):
    planes = planes_of(volume, 0, trunk)
    assert trunk.calls == []
    first = planes.embeddings(torch.tensor([3, 7, 3, 3]))
    assert trunk.calls == [2]
    assert torch.equal(first[0], first[2])
    again = planes.embeddings(torch.tensor([7, 3]))
    assert trunk.calls == [2]
    assert torch.equal(again[0], first[1])
    planes.embeddings(torch.tensor([8, 0, 1, 2, 7, 4, 5]))
    assert trunk.calls == [2, 4, 2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_prompt_gets_its_own_plane(volume, trunk, axis):
    wanted = torch.tensor([5, 0, 8, 5])
    found = planes_of(volume, axis, trunk, batch=3).embeddings(wanted)
    grey = Intensities.of(volume)
    for n, plane in enumerate(wanted.tolist()):
        alone = planes_of(volume, axis, trunk).embeddings(torch.tensor([plane]))
        torch.testing.assert_close(found[n], alone[0], atol=1e-4, rtol=1e-4)
        values = grey.to_unit(volume.select(axis, plane))
        assert (trunk.pictures[-1][0].mean() - values.mean()).abs() < 0.02
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_out_of_memory_halves_the_batch_once_and_for_all(volume, trunk):
    expected = planes_of(volume, 0, trunk).embeddings(torch.arange(9))
    trunk.calls.clear()
    trunk.room = 2
    planes = planes_of(volume, 0, trunk)
    torch.testing.assert_close(planes.embeddings(torch.arange(9)), expected, atol=1e-4, rtol=1e-4)
    assert trunk.calls == [4, 2, 2, 2, 2, 1]


def test_a_second_time_is_an_error_that_says_what_to_set(volume, trunk):
    trunk.room = 1
    planes = planes_of(volume, 0, trunk)
    with pytest.raises(DeviceError, match=r"room for a batch of 2 planes.*segmenter\.encode_batch"):
        planes.embeddings(torch.arange(9))
    assert trunk.calls == [4, 2]


def test_colours(volume, trunk):
    grey = Intensities.of(volume)
    middle, below, above = (grey.to_unit(volume[plane]) for plane in (4, 3, 5))
    mean = grey.to_unit(volume[3:6].mean(0))
    ends = grey.to_unit((2 * volume[8] + volume[7]) / 3)
    # One pixel is one voxel on this side: pictures can be compared without resizing.
    for channels, expected in (
        ("repeat", middle),
        ("mean", mean),
        ("neighbours", torch.stack([below, middle, above])),
    ):
        planes = SamPlanes(volume, 0, trunk, 31, "native", channels, Batches(4, "planes", ""))
        planes.embeddings(torch.tensor([4]))
        torch.testing.assert_close(trunk.pictures[-1][0], expected)
        planes.embeddings(torch.tensor([8]))
    torch.testing.assert_close(trunk.pictures[-1][0], torch.stack([grey.to_unit(volume[p]) for p in (7, 8, 8)]))
    planes = SamPlanes(volume, 0, trunk, 31, "native", "mean", Batches(4, "planes", ""))
    planes.embeddings(torch.tensor([8]))
    torch.testing.assert_close(trunk.pictures[-1][0], ends)


def test_pictures_hold_grey_values_from_0_to_1_of_the_whole_volume(volume, trunk):
    """Planes are not stretched one by one: a plane without contrast stays grey."""
    flat = volume.clone()
    flat[4] = volume.median()
    flat[0, 0, 0] = 1000.0
    planes = planes_of(flat, 0, trunk)
    planes.embeddings(torch.tensor([0, 4]))
    pictures = trunk.pictures[-1]
    assert 0 <= pictures.min() < 0.05
    assert pictures.max() == 1
    assert pictures[1].std() < 1e-5
    assert 0.3 < pictures[1].mean() < 0.7


@pytest.mark.parametrize(("padding", "tokens"), [("native", (3, 4)), ("square", (4, 4))])
def test_padding_reaches_the_trunk(volume, trunk, padding, tokens):
    assert planes_of(volume, 0, trunk, padding=padding).embeddings(torch.tensor([1])).shape == (1, 256, *tokens)
