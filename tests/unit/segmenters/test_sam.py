"""SAM as a plane segmenter against the official `SamPredictor`, plane by plane and prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.foundation import checkpoints
from copick_cryosam.foundation.pictures import Intensities
from copick_cryosam.segmenters import cross_plane, load_segmenter
from copick_cryosam.segmenters.sam import SamSegmenter
from copick_cryosam.types import VoxelPoints

CPU = torch.device("cpu")
WINDOW = 17
CLOSE = 1e-5
"""Of the logits' range; the chains below are up to four planes long, each prompted by the mask before."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(official_sam):
    return official_sam.random_sam()


def settings(**fields: Any) -> SegmenterSettings:
    return SegmenterSettings(name="sam", **fields)


def volume_of(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand((1, 1, 4, 6, 7), generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0]
    values = smooth + 0.1 * torch.randn(shape, generator=generator)
    return (values - values.mean()) / values.std()


@dataclass
class Reference:
    """The official predictor's answer to one prompt: masks 0 (single) to 3."""

    low: Tensor
    masks: Tensor
    iou: Tensor


class OfficialWalk:
    """Planes across the first axis, one official call for each plane, prompt and kind of output."""

    def __init__(self, official_sam: Any, sam: Any, volume: Tensor) -> None:
        self._predictor = official_sam.predictor(sam)
        self._volume = volume
        self._intensities = Intensities.of(volume)
        self._set: int | None = None

    def ask(self, plane: int, point: Tensor, mask: Tensor | None, box: Tensor | None = None) -> Reference:
        """`point` in voxels (row, column); `box` in SAM's coordinates."""
        height, width = self._volume.shape[1:]
        official = self._predictor
        side = official.model.image_encoder.img_size
        picture = official.transform.get_preprocess_shape(height, width, side)
        if plane != self._set:
            values = self._intensities.to_unit(self._volume[plane])[None, None].expand(-1, 3, -1, -1)
            resized = F.interpolate(values, size=picture, mode="bilinear", align_corners=False, antialias=True)
            official.set_torch_image(resized * 255, (height, width))
            self._set = plane
        # SAM adds half a pixel itself; its own apply_coords knows no half pixels.
        x, y = ((point[i] + 0.5) * picture[i] / (height, width)[i] - 0.5 for i in (1, 0))
        answers = [
            official.predict_torch(
                torch.tensor([[[x, y]]]),
                torch.ones((1, 1), dtype=torch.int),
                boxes=None if box is None else box[None],
                mask_input=None if mask is None else mask[None, None],
                multimask_output=several,
                return_logits=True,
            )
            for several in (False, True)
        ]
        masks, iou, low = (torch.cat([answer[i][0] for answer in answers]) for i in range(3))
        return Reference(low, masks, iou)


def at_window(mask: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The official mask at the window's voxels, and which of them lie in the plane."""
    rows, columns = (window[i] + torch.arange(WINDOW) for i in (0, 1))
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
    return mask[rows.clamp(0, mask.shape[0] - 1)[:, None], columns.clamp(0, mask.shape[1] - 1)], inside


def assert_close(found: Tensor, expected: Tensor) -> None:
    spread = float(expected.max() - expected.min())
    assert spread > 1
    assert float((found - expected).abs().max()) < CLOSE * spread


def consistent(reference: Reference, before: Tensor | None, picture: tuple[int, int]) -> int:
    """The rule of `mask_choice="consistent"`, written out for one prompt."""
    scores = []
    height, width = -(-(picture[0] - 2) // 4), -(-(picture[1] - 2) // 4)
    for index in (1, 2, 3):
        score = float(reference.iou[index])
        if before is not None:
            new, old = reference.low[index, :height, :width] > 0, before[:height, :width] > 0
            areas = sorted((int(new.sum()), int(old.sum())))
            score = max(score, 0) * float((new & old).sum() / (new | old).sum()) * areas[0] / areas[1]
        scores.append(score)
    return 1 + scores.index(max(scores))


def walk_and_compare(official_sam: Any, sam: Any, shape: tuple[int, int, int], **fields: Any) -> None:
    """Walk up the planes with the official predictor and ask the segmenter the same, two proposals at once."""
    volume = volume_of(*shape)
    reference = OfficialWalk(official_sam, sam, volume)
    segmenter = SamSegmenter(sam, "test", settings(**fields), CPU)
    embeddings = segmenter.embed(volume, 0, 5.0)
    geometry = embeddings.geometry
    points = torch.tensor([[shape[1] / 2, shape[2] / 2], [2.4, shape[2] - 3.2]])
    windows = torch.floor(points + 0.5).long() - WINDOW // 2
    prompts = None
    choices = set()
    for plane in range(shape[0]):
        # The second proposal starts one plane further up than the first.
        planes = torch.tensor([plane, (plane + 1) % shape[0]])
        decoded = segmenter.decode(embeddings, planes, points, windows, WINDOW, prompts)
        new_prompts, new_points = [], []
        for n in range(2):
            before = None if prompts is None else prompts[n]
            answer = reference.ask(int(planes[n]), points[n], before)
            best = {
                "single": 0,
                "best": 1 + int(answer.iou[1:].argmax()),
                "consistent": consistent(answer, before, geometry.picture),
            }[segmenter._settings.mask_choice]
            choices.add(best)
            window, inside = at_window(answer.masks[best], windows[n])
            assert_close(decoded.prompt[n], answer.low[best])
            assert_close(decoded.logits[n][inside], window[inside])
            assert (decoded.logits[n][~inside] < 0).all()
            assert abs(float(decoded.iou[n]) - float(answer.iou[best].clamp(0, 1))) < CLOSE
            new_prompts.append(answer.low[best])
            peak = int(window.masked_fill(~inside, -torch.inf).argmax())
            new_points.append(windows[n] + torch.tensor([peak // WINDOW, peak % WINDOW]))
        prompts, points = torch.stack(new_prompts), torch.stack(new_points).float()
    assert choices <= ({0} if segmenter._settings.mask_choice == "single" else {1, 2, 3})


def test_a_walk_of_vit_b_equals_the_official_predictor(official_sam):
    sam = official_sam.random_sam(**official_sam.VIT_B)
    walk_and_compare(official_sam, sam, (3, 92, 96), padding="square", mask_choice="consistent")


@pytest.mark.parametrize("choice", ["single", "best", "consistent"])
@pytest.mark.parametrize("shape", [(4, 96, 96), (4, 92, 96), (4, 20, 96), (4, 61, 33), (3, 300, 280)])
def test_a_walk_equals_the_official_predictor(official_sam, small, shape, choice):
    walk_and_compare(official_sam, small, shape, padding="square", mask_choice=choice)


def test_a_walk_on_square_planes_at_native_padding_equals_the_official_predictor(official_sam, small):
    walk_and_compare(official_sam, small, (4, 96, 96), padding="native", mask_choice="consistent")


def test_boxes_equal_the_official_ones_in_a_batch_where_some_have_none(official_sam, small):
    volume = volume_of(3, 92, 96)
    reference = OfficialWalk(official_sam, small, volume)
    segmenter = SamSegmenter(small, "test", settings(padding="square", mask_choice="single", box_prompt=True), CPU)
    embeddings = segmenter.embed(volume, 0, 5.0)
    points = torch.tensor([[40.0, 50.0], [60.3, 20.6], [80.0, 90.0]])
    prompts = torch.full((3, 64, 64), -3.0)
    prompts[0, 20:31, 25:41] = 4.0
    # 92 voxels are 245 pixels: logits from row 61 on have their centres in the padding.
    prompts[1, 61:] = 4.0
    prompts[2, 50:, 55:] = 4.0
    boxes = [torch.tensor([99.5, 79.5, 163.5, 123.5]), None, torch.tensor([219.5, 199.5, 255.5, 243.5])]
    planes = torch.tensor([0, 2, 1])
    decoded = segmenter.decode(embeddings, planes, points, points.long() - 8, WINDOW, prompts)
    for n in range(3):
        expected = reference.ask(int(planes[n]), points[n], prompts[n], boxes[n])
        assert_close(decoded.prompt[n], expected.low[0])
        if boxes[n] is not None:
            without = reference.ask(int(planes[n]), points[n], prompts[n])
            assert (without.low[0] - expected.low[0]).abs().max() > 0.1


def test_native_is_near_square_on_planes_that_are_not(small):
    """Not the same: the global layers do not see the padding. With random weights this is as far as one can say."""
    volume = volume_of(3, 20, 96)
    planes, points = torch.tensor([0, 2]), torch.tensor([[10.0, 40.0], [5.0, 80.0]])
    decoded = [
        SamSegmenter(small, "test", settings(padding=padding, mask_choice="single"), CPU)
        for padding in ("native", "square")
    ]
    native, square = (
        one.decode(one.embed(volume, 0, 5.0), planes, points, points.long() - 8, WINDOW, None) for one in decoded
    )
    assert native.prompt.shape == (2, 16, 64)
    assert square.prompt.shape == (2, 64, 64)
    a, b = native.prompt[:, :13].flatten(), square.prompt[:, :13].flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.5


@pytest.mark.parametrize("padding", ["native", "square"])
def test_bf16_stays_near_fp32(small, padding):
    volume = volume_of(3, 48, 96)
    planes, points = torch.tensor([0, 2]), torch.tensor([[10.0, 40.0], [30.0, 80.0]])
    full, half = (
        SamSegmenter(small, "test", settings(padding=padding, mask_choice="single", precision=precision), CPU)
        for precision in ("fp32", "bf16")
    )
    prompt = None
    for _ in range(2):
        expected, found = (
            one.decode(one.embed(volume, 0, 5.0), planes, points, points.long() - 8, WINDOW, prompt)
            for one in (full, half)
        )
        assert found.logits.dtype == found.prompt.dtype == found.iou.dtype == torch.float32
        inside = expected.logits > -15
        assert 0 < (found.logits - expected.logits)[inside].std() < 0.05 * expected.logits[inside].std()
        assert (found.iou - expected.iou).abs().max() < 0.05
        prompt = expected.prompt
    assert half.embed(volume, 0, 5.0).embeddings(planes).dtype == torch.bfloat16


def test_prompts_are_read_to_full_precision_in_bf16(small):
    """In bf16 the places 200 and 200.4 are the same; the prompt encoder has to tell them apart."""
    segmenter = SamSegmenter(small, "test", settings(mask_choice="single", precision="bf16"), CPU)
    embeddings = segmenter.embed(volume_of(1, 256, 256), 0, 5.0)
    points = torch.tensor([[200.0, 200.0], [200.4, 200.0]])
    decoded = segmenter.decode(embeddings, torch.tensor([0, 0]), points, points.long() - 8, WINDOW, None)
    assert not torch.equal(decoded.prompt[0], decoded.prompt[1])


def test_a_smaller_picture_than_the_weights_were_trained_at(small):
    segmenter = SamSegmenter(small, "test", settings(longest_side=128), CPU)
    embeddings = segmenter.embed(volume_of(2, 40, 60), 0, 5.0)
    assert embeddings.geometry.picture == (85, 128)
    point = torch.tensor([[20.0, 30.0]])
    decoded = segmenter.decode(embeddings, torch.tensor([1]), point, point.long() - 8, WINDOW, None)
    assert decoded.prompt.shape == (1, 24, 32)


def test_cross_plane_prompting_runs_on_it_and_encodes_no_more_than_it_visits(small, monkeypatch):
    segmenter = SamSegmenter(small, "test", settings(), CPU)
    encoded = []
    encode = segmenter._trunk.encode
    monkeypatch.setattr(
        segmenter._trunk, "encode", lambda pictures, *rest: encoded.append(len(pictures)) or encode(pictures, *rest)
    )
    points = VoxelPoints([[10.0, 16.0, 20.0], [10.0, 18.0, 25.0]])
    masks = cross_plane.segment(volume_of(20, 36, 44), points, 3.0, segmenter, settings(extent=1, iou_stop=0.05))
    assert len(masks) == 2
    assert all(mask.planes >= 3 for mask in masks)
    # Three planes up and down from each prompt: 7 across z, 9 across y, 12 across x.
    assert 3 <= sum(encoded) <= 7 + 9 + 12


def test_a_larger_picture_is_refused(small):
    with pytest.raises(InputError, match=r"segmenter\.longest_side: expected at most 256, found 512"):
        SamSegmenter(small, "test", settings(longest_side=512), CPU)


def test_a_mask_in_the_padding_is_not_chosen_for_it(small, monkeypatch):
    """Three masks equally good to SAM: two agree with the mask before in the plane, one of them spills into padding."""
    segmenter = SamSegmenter(small, "test", settings(padding="square", mask_choice="consistent"), CPU)
    embeddings = segmenter.embed(volume_of(1, 32, 96), 0, 5.0)
    before = torch.full((1, 64, 64), -1.0)
    before[:, 5:15, 10:20] = 1.0
    low = torch.full((1, 4, 64, 64), -1.0)
    low[:, 1, 5:15, 10:17] = 1.0
    low[:, 2] = before
    low[:, 2, 30:] = 1.0
    low[:, 3, :20] = 1.0
    monkeypatch.setattr(segmenter._decoder, "decode", lambda *_: (low, torch.tensor([[0.9, 0.7, 0.7, 0.7]])))
    decoded = segmenter.decode(
        embeddings, torch.tensor([0]), torch.tensor([[15.0, 22.0]]), torch.tensor([[7, 14]]), WINDOW, before
    )
    assert torch.equal(decoded.prompt, low[:, 2])


def test_predicted_ious_are_clamped(small, monkeypatch):
    segmenter = SamSegmenter(small, "test", settings(mask_choice="single"), CPU)
    embeddings = segmenter.embed(volume_of(1, 96, 96), 0, 5.0)
    iou = torch.tensor([[1.2, 0, 0, 0], [-0.1, 0, 0, 0]])
    monkeypatch.setattr(segmenter._decoder, "decode", lambda *_: (torch.zeros(2, 4, 64, 64), iou))
    decoded = segmenter.decode(
        embeddings, torch.tensor([0, 0]), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long), WINDOW, None
    )
    assert decoded.iou.tolist() == [1, 0]
    assert decoded.presence.tolist() == [1, 1]


def test_it_is_registered_and_loads_the_checkpoint_that_the_settings_name(small, monkeypatch):
    asked = []

    def load_sam(path, model):
        asked.append((path, model))
        return SimpleNamespace(sam=small, signature="sam-vit_b-0123456789ab")

    monkeypatch.setattr(checkpoints, "load_sam", load_sam)
    segmenter = load_segmenter(settings(checkpoint="weights.pth", model="vit_b"), CPU)
    assert asked == [("weights.pth", "vit_b")]
    assert (segmenter.name, segmenter.signature) == ("sam", "sam-vit_b-0123456789ab")
