"""Slabs of planes: one decode for several planes changes how often is asked, not what is found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.segmenters import Decoded, PlaneSegmenter
from copick_cryosam.segmenters.cross_plane import CrossPlaneMask, segment
from copick_cryosam.segmenters.promptnet import PIXELS, PromptNet, PromptNetSegmenter, between, pitch_of, windows_of
from copick_cryosam.segmenters.slabs import SlabPrompts, decode_slab, planes_told
from copick_cryosam.types import VoxelPoints

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Labels:
    """Plane by plane, says what a label volume says; its `prompt` is the plane's index."""

    truth: np.ndarray
    name: str = "labels"
    signature: str = "labels"
    asked: int = 0

    def embed(self, volume, axis, radius_vox):
        return torch.as_tensor(np.moveaxis(self.truth, axis, 0).copy())

    def decode(self, embeddings, planes, points, windows, window, mask_prompts):
        self.asked += len(planes)
        return self.plane(embeddings, planes, windows, window)

    def plane(self, embeddings, planes, windows, window):
        depth, height, width = embeddings.shape
        rows, columns = (windows[:, i, None] + torch.arange(window) for i in (0, 1))
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        inside = inside & ((planes >= 0) & (planes < depth))[:, None, None]
        found = embeddings[
            planes.clamp(0, depth - 1)[:, None, None],
            rows.clamp(0, height - 1)[:, :, None],
            columns.clamp(0, width - 1)[:, None, :],
        ]
        logits = torch.where(found & inside, 4.0, -4.0)
        ones = torch.ones(len(planes))
        return Decoded(logits=logits, iou=0.8 * ones, presence=ones, prompt=planes[:, None].float())


@dataclass
class Slabs(Labels):
    """The same, several planes at once."""

    told: int = 1
    seen: list[SlabPrompts] = field(default_factory=list)

    def planes_told(self, window):
        return self.told

    def decode_slab(self, embeddings, prompts, window, told):
        self.asked += len(prompts)
        self.seen.append(prompts)
        return [
            self.plane(embeddings, prompts.planes + step * prompts.directions, prompts.windows, window)
            for step in range(-told, told + 1)
        ]


def settings(**changes) -> SegmenterSettings:
    return SegmenterSettings(name="fake", **{"iou_stop": 0.3, "presence_stop": 0.0, "batch": 3, **changes})


def found(segmenter: PlaneSegmenter, prompts: np.ndarray, radius: float, **changes) -> list[CrossPlaneMask]:
    volume = torch.zeros(segmenter.truth.shape, dtype=torch.float32)
    return segment(volume, VoxelPoints(prompts), radius, segmenter, settings(**changes))


@given(
    truth=arrays.arrays(bool, st.tuples(*[st.integers(3, 14)] * 3), elements=st.booleans(), fill=st.just(True)),
    places=st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=4),
    told=st.integers(1, 3),
    missed=st.integers(0, 3),
    radius=st.floats(1.2, 5.0),
    extent=st.floats(0.2, 2.0),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_slabs_find_what_single_planes_find(truth, places, told, missed, radius, extent):
    prompts = np.array(places) * (np.array(truth.shape) - 1)
    one, several = Labels(truth), Slabs(truth, told=told)
    options = {"missed_planes": missed, "extent": extent}
    singles, slabs = found(one, prompts, radius, **options), found(several, prompts, radius, **options)
    for expected, here in zip(singles, slabs, strict=True):
        assert here.origin_zyx == expected.origin_zyx
        assert np.array_equal(here.mask, expected.mask)
        assert (here.planes, here.confidence) == (expected.planes, pytest.approx(expected.confidence))
        assert here.decodes <= expected.decodes


def test_a_slab_is_one_decode():
    truth = np.zeros((31, 31, 31), dtype=bool)
    truth[10:21, 10:21, 10:21] = True
    centre = np.array([[15.0, 15.0, 15.0]])
    (single,) = found(Labels(truth), centre, 6.0)
    (slabs,) = found(Slabs(truth, told=2), centre, 6.0)
    # eleven planes on each axis and two that end the walks; of slabs the first holds five planes and each way one
    # more the other three, with the plane that ends the walk
    assert (single.planes, single.decodes) == (33, 3 * (11 + 2))
    assert (slabs.planes, slabs.decodes) == (33, 3 * (1 + 2))


def test_seeds_are_prompted_plane_by_plane():
    truth = np.zeros((31, 31, 31), dtype=bool)
    truth[10:21, 10:21, 10:21] = True
    volume, centre = torch.zeros(truth.shape), VoxelPoints(np.array([[15.0, 15.0, 15.0]]))
    (seed,) = segment(volume, centre, 6.0, Slabs(truth, told=2), settings(), sure=True)
    assert (seed.planes, seed.decodes) == (33, 3 * (11 + 2))


def test_a_slab_is_prompted_by_the_last_plane_that_was_used():
    truth = np.zeros((41, 9, 9), dtype=bool)
    truth[5:36] = True
    truth[24] = False
    segmenter = Slabs(truth, told=1)
    found(segmenter, np.array([[20.0, 4.0, 4.0]]), 9.0, missed_planes=1)
    along_z = [one for one in segmenter.seen if one.planes[0] != 4]
    first, second, third = along_z[:3]
    assert first.masks is None
    assert first.away.tolist() == [0]
    assert (second.planes.tolist(), second.directions.tolist()) == ([23, 17], [1, -1])
    assert (second.masks.flatten().tolist(), second.away.tolist()) == ([21.0, 19.0], [2, 2])
    # plane 24 is empty: the walk goes on from 23, three planes before the next slab's middle
    assert third.planes.tolist() == [26, 14]
    assert (third.masks.flatten().tolist(), third.away.tolist()) == ([23.0, 16.0], [3, 2])


def test_single_planes_have_slabs_of_one():
    segmenter = Labels(np.ones((5, 6, 7), dtype=bool))
    assert planes_told(segmenter, 9) == 0
    prompts = SlabPrompts(
        planes=torch.tensor([2]),
        directions=torch.tensor([-1]),
        points=torch.tensor([[3.0, 3.0]]),
        windows=torch.tensor([[0, 0]]),
        masks=None,
        away=torch.tensor([0]),
    )
    (only,) = decode_slab(segmenter, segmenter.embed(torch.zeros(5, 6, 7), 0, 2.0), prompts, 6, 0)
    assert (only.logits[0] > 0).all()


def test_planes_are_read_in_the_order_of_the_walk():
    stack = torch.randn(1, 1, 15, 60, 60, generator=torch.Generator().manual_seed(1))
    planes, windows = torch.tensor([7, 7]), torch.tensor([[5, 6], [5, 6]])
    images, _ = windows_of(stack, planes, torch.tensor([1, -1]), windows, PIXELS)
    torch.testing.assert_close(images[0], images[1].flip(0))
    torch.testing.assert_close(images[0], stack[0, 0, 4:11, 5:53, 6:54])


def test_between_planes_it_is_read_linearly():
    told = torch.arange(5.0)[None, :, None].expand(2, 5, 3)
    read = between(told, torch.tensor([-2.0, -0.25, 0.0, 1.5, 2.0]))
    assert read.shape == (2, 5, 3)
    torch.testing.assert_close(read[0, :, 0], torch.tensor([0.0, 1.75, 2.0, 3.5, 4.0]))


@pytest.mark.parametrize(("window", "told"), [(25, 2), (48, 2), (49, 2), (73, 3), (145, 6)])
def test_a_slab_is_as_thick_as_the_net_sees_whatever_the_scale(window, told):
    net = PromptNetSegmenter(PromptNet(), "random", SegmenterSettings(slab=2), torch.device("cpu"))
    assert net.planes_told(window) == told
    assert told <= 2 * pitch_of(window) < told + 1
    half = PromptNetSegmenter(PromptNet(), "random", SegmenterSettings(slab=1), torch.device("cpu"))
    assert half.planes_told(window) <= told


def test_a_slab_of_promptnet_holds_its_own_planes():
    """The middle is what a single decode says, and a walk the other way says the same of a mirrored volume."""
    torch.manual_seed(3)
    segmenter = PromptNetSegmenter(PromptNet(), "random", SegmenterSettings(precision="fp32"), torch.device("cpu"))
    volume = torch.randn(21, 40, 44)
    clicks, windows, window = torch.tensor([[20.0, 21.0]]), torch.tensor([[8, 9]]), 25
    forth, back = torch.tensor([1]), torch.tensor([-1])

    def slab(volume, plane, direction):
        prompts = SlabPrompts(
            planes=torch.tensor([plane]),
            directions=direction,
            points=clicks,
            windows=windows,
            masks=None,
            away=torch.zeros(1, dtype=torch.int64),
        )
        return segmenter.decode_slab(segmenter.embed(volume, 0, 6.0), prompts, window, segmenter.planes_told(window))

    ahead, mirrored = slab(volume, 8, forth), slab(volume.flip(0), 12, back)
    assert len(ahead) == len(mirrored) == 5
    single = segmenter.decode(segmenter.embed(volume, 0, 6.0), torch.tensor([8]), clicks, windows, window, None)
    for name in ("logits", "iou", "presence", "prompt"):
        torch.testing.assert_close(getattr(ahead[2], name), getattr(single, name))
        for one, other in zip(ahead, mirrored, strict=True):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(getattr(ahead[1], name), getattr(ahead[3], name))
