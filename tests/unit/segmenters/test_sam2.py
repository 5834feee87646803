"""SAM 2 as a plane segmenter against transformers' own `Sam2Model`, plane by plane and prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

from copick_cryosam.cli.group import cryosam
from copick_cryosam.compute.estimating import estimate
from copick_cryosam.compute.models import named_models
from copick_cryosam.config import SegmenterSettings, override, preset
from copick_cryosam.errors import DataError, InputError
from copick_cryosam.foundation import catalogue, sam2_model
from copick_cryosam.foundation.catalogue import SAM2S
from copick_cryosam.foundation.pictures import Intensities
from copick_cryosam.segmenters import cross_plane, load_segmenter
from copick_cryosam.segmenters.sam2 import Sam2Segmenter
from copick_cryosam.types import Grid, VoxelPoints

CPU = torch.device("cpu")
SIDE, LOW = 128, 32
WINDOW = 17
CLOSE = 1e-5
"""Of the logits' range; the chains below are up to four planes long, each prompted by the mask before."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(random_sam2):
    return random_sam2.random_sam2(SIDE)


def settings(**fields: Any) -> SegmenterSettings:
    return SegmenterSettings(name="sam2", **fields)


def volume_of(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand((1, 1, 4, 6, 7), generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0]
    values = smooth + 0.1 * torch.randn(shape, generator=generator)
    return (values - values.mean()) / values.std()


@dataclass
class Reference:
    """transformers' answer to one prompt: one mask or three."""

    low: Tensor
    masks: Tensor
    iou: Tensor
    presence: float


def ask(
    model: Any,
    volume: Tensor,
    plane: int,
    point: Tensor,
    mask: Tensor | None,
    several: bool,
    box: Tensor | None = None,
) -> Reference:
    """One call of `Sam2Model` with a picture; `point` in voxels (row, column), `box` in pixels."""
    height, width = volume.shape[1:]
    scale = SIDE / max(height, width)
    picture = [int(side * scale + 0.5) for side in (height, width)]
    grey = Intensities.of(volume).to_unit(volume[plane])[None, None]
    grey = F.interpolate(grey, size=picture, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    square = torch.zeros(1, 3, SIDE, SIDE)
    square[:, :, : picture[0], : picture[1]] = (grey - mean) / std
    # transformers adds half a pixel itself
    x, y = ((point[i] + 0.5) * picture[i] / (height, width)[i] - 0.5 for i in (1, 0))
    with torch.inference_mode():
        answer = model(
            pixel_values=square,
            input_points=torch.tensor([[[[x, y]]]]),
            input_boxes=None if box is None else box[None, None],
            input_masks=None if mask is None else mask[None, None].clamp(-32, 32),
            multimask_output=several,
        )
    low = answer.pred_masks[0, 0]
    whole = F.interpolate(low[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    cropped = whole[:, :, : picture[0], : picture[1]]
    masks = F.interpolate(cropped, size=(height, width), mode="bilinear", align_corners=False)[0]
    return Reference(low, masks, answer.iou_scores[0, 0], float(answer.object_score_logits[0, 0, 0].sigmoid()))


def at_window(mask: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's mask at the window's voxels, and which of them lie in the plane."""
    rows, columns = (window[i] + torch.arange(WINDOW) for i in (0, 1))
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
    return mask[rows.clamp(0, mask.shape[0] - 1)[:, None], columns.clamp(0, mask.shape[1] - 1)], inside


def assert_close(found: Tensor, expected: Tensor) -> None:
    spread = float(expected.max() - expected.min())
    assert spread > 1
    assert float((found - expected).abs().max()) < CLOSE * spread


def consistent(reference: Reference, before: Tensor | None, inside: Tensor) -> int:
    """The rule of `mask_choice="consistent"`, written out for one prompt."""
    scores = []
    for low, iou in zip(reference.low, reference.iou, strict=True):
        score = float(iou)
        if before is not None:
            new, old = low[inside] > 0, before[inside] > 0
            areas = sorted((int(new.sum()), int(old.sum())))
            score *= float((new & old).sum() / max(1, int((new | old).sum()))) * areas[0] / max(1, areas[1])
        scores.append(score)
    return scores.index(max(scores))


@pytest.mark.parametrize("choice", ["single", "best", "consistent"])
@pytest.mark.parametrize("shape", [(4, 96, 96), (4, 20, 96), (4, 61, 33), (3, 300, 280)])
def test_a_walk_equals_transformers_prompt_by_prompt(tiny, shape, choice):
    """Two proposals at once on different planes, each plane prompted by the one before."""
    volume = volume_of(*shape)
    segmenter = Sam2Segmenter(tiny, "test", settings(mask_choice=choice), CPU)
    embeddings = segmenter.embed(volume, 0, 5.0)
    assert embeddings.geometry.low == (LOW, LOW)
    points = torch.tensor([[shape[1] / 2, shape[2] / 2], [2.4, shape[2] - 3.2]])
    windows = torch.floor(points + 0.5).long() - WINDOW // 2
    prompts = None
    presences = set()
    for plane in range(shape[0]):
        planes = torch.tensor([plane, (plane + 1) % shape[0]])
        decoded = segmenter.decode(embeddings, planes, points, windows, WINDOW, prompts)
        new_prompts, new_points = [], []
        for n in range(2):
            before = None if prompts is None else prompts[n]
            answer = ask(tiny, volume, int(planes[n]), points[n], before, choice != "single")
            best = consistent(answer, before, embeddings.inside) if choice == "consistent" else int(answer.iou.argmax())
            window, inside = at_window(answer.masks[best], windows[n])
            assert_close(decoded.prompt[n], answer.low[best])
            assert_close(decoded.logits[n][inside], window[inside])
            assert (decoded.logits[n][~inside] < 0).all()
            assert abs(float(decoded.iou[n]) - float(answer.iou[best])) < CLOSE
            assert abs(float(decoded.presence[n]) - answer.presence) < CLOSE
            presences.add(round(answer.presence, 4))
            new_prompts.append(answer.low[best])
            peak = int(window.masked_fill(~inside, -torch.inf).argmax())
            new_points.append(windows[n] + torch.tensor([peak // WINDOW, peak % WINDOW]))
        prompts, points = torch.stack(new_prompts), torch.stack(new_points).float()
    assert len(presences) > 1


def test_boxes_equal_those_of_transformers_in_a_batch_where_some_have_none(tiny):
    volume = volume_of(3, 92, 96)
    segmenter = Sam2Segmenter(tiny, "test", settings(mask_choice="single", box_prompt=True), CPU)
    embeddings = segmenter.embed(volume, 0, 5.0)
    points = torch.tensor([[40.0, 50.0], [60.3, 20.6], [80.0, 90.0]])
    prompts = torch.full((3, LOW, LOW), -3.0)
    # 92 voxels are 123 pixels: logits of row 31 have their centres in the padding.
    prompts[0, 31] = 4.0
    prompts[1, 10:16, 12:21] = 40.0
    prompts[2, 25:, 27:] = 4.0
    boxes = [None, torch.tensor([47.5, 39.5, 83.5, 63.5]), torch.tensor([107.5, 99.5, 127.5, 122.5])]
    planes = torch.tensor([0, 2, 1])
    decoded = segmenter.decode(embeddings, planes, points, points.long() - 8, WINDOW, prompts)
    for n in range(3):
        expected = ask(tiny, volume, int(planes[n]), points[n], prompts[n], False, boxes[n])
        assert_close(decoded.prompt[n], expected.low[0])
        assert abs(float(decoded.presence[n]) - expected.presence) < CLOSE
        if boxes[n] is not None:
            without = ask(tiny, volume, int(planes[n]), points[n], prompts[n], False)
            assert (without.low[0] - expected.low[0]).abs().max() > 0.1


def test_bf16_stays_near_fp32(tiny):
    volume = volume_of(3, 48, 96)
    planes, points = torch.tensor([0, 2]), torch.tensor([[10.0, 40.0], [30.0, 80.0]])
    full, half = (
        Sam2Segmenter(tiny, "test", settings(mask_choice="single", precision=precision), CPU)
        for precision in ("fp32", "bf16")
    )
    prompt = None
    for _ in range(2):
        expected, found = (
            one.decode(one.embed(volume, 0, 5.0), planes, points, points.long() - 8, WINDOW, prompt)
            for one in (full, half)
        )
        for values in (found.logits, found.prompt, found.iou, found.presence):
            assert values.dtype == torch.float32
        inside = expected.logits > -15.99
        assert 0 < (found.logits - expected.logits)[inside].std() < 0.1 * expected.logits[inside].std()
        assert (found.iou - expected.iou).abs().max() < 0.05
        assert (found.presence - expected.presence).abs().max() < 0.05
        prompt = expected.prompt
    assert half.embed(volume, 0, 5.0).embeddings(planes).dtype == torch.bfloat16


def test_prompts_are_read_to_full_precision_in_bf16(tiny):
    """In bf16 the places 100 and 100.2 are the same; the prompt encoder has to tell them apart."""
    segmenter = Sam2Segmenter(tiny, "test", settings(mask_choice="single", precision="bf16"), CPU)
    embeddings = segmenter.embed(volume_of(1, SIDE, SIDE), 0, 5.0)
    points = torch.tensor([[100.0, 100.0], [100.2, 100.0]])
    decoded = segmenter.decode(embeddings, torch.tensor([0, 0]), points, points.long() - 8, WINDOW, None)
    assert not torch.equal(decoded.prompt[0], decoded.prompt[1])


def test_the_size_of_the_encoder_s_batches_changes_nothing(tiny):
    volume, planes = volume_of(5, 40, 60), torch.arange(5)
    one, all_ = (
        Sam2Segmenter(tiny, "test", settings(encode_batch=batch), CPU).embed(volume, 0, 5.0).embeddings(planes)
        for batch in (1, 5)
    )
    torch.testing.assert_close(one, all_, atol=1e-4, rtol=1e-4)


def test_a_smaller_picture_than_the_weights_were_trained_at(tiny):
    segmenter = Sam2Segmenter(tiny, "test", settings(longest_side=64), CPU)
    embeddings = segmenter.embed(volume_of(2, 40, 60), 0, 5.0)
    assert (embeddings.geometry.picture, embeddings.geometry.padded) == ((43, 64), (SIDE, SIDE))
    point = torch.tensor([[20.0, 30.0]])
    decoded = segmenter.decode(embeddings, torch.tensor([1]), point, point.long() - 8, WINDOW, None)
    assert decoded.prompt.shape == (1, LOW, LOW)
    with pytest.raises(InputError, match=r"segmenter\.longest_side: expected at most 128, found 512"):
        Sam2Segmenter(tiny, "test", settings(longest_side=512), CPU)
    with pytest.raises(InputError, match=r"at most 128 x 128 pixels, found 3 and 20 x 129"):
        segmenter._trunk.encode(torch.zeros(1, 20, 129))


def test_cross_plane_prompting_runs_on_it_and_encodes_no_more_than_it_visits(tiny, monkeypatch):
    segmenter = Sam2Segmenter(tiny, "test", settings(), CPU)
    encoded = []
    encode = segmenter._trunk.encode
    monkeypatch.setattr(
        segmenter._trunk, "encode", lambda pictures, *rest: encoded.append(len(pictures)) or encode(pictures, *rest)
    )
    points = VoxelPoints([[10.0, 16.0, 20.0], [10.0, 18.0, 25.0]])
    rules = settings(extent=1, iou_stop=0, presence_stop=0)
    masks = cross_plane.segment(volume_of(20, 36, 44), points, 3.0, segmenter, rules)
    assert len(masks) == 2
    assert all(mask.planes >= 3 for mask in masks)
    # Three planes up and down from each prompt: 7 across z, 9 across y, 12 across x.
    assert 3 <= sum(encoded) <= 7 + 9 + 12


def test_it_is_registered_and_loads_the_checkpoint_that_the_settings_name(tiny, monkeypatch):
    asked = []

    def load_sam2(checkpoint):
        asked.append(checkpoint)
        return SimpleNamespace(model=tiny, signature="sam2.1-tiny-0123456789ab")

    monkeypatch.setattr(sam2_model, "load_sam2", load_sam2)
    segmenter = load_segmenter(settings(checkpoint="sam2.1-tiny"), CPU)
    assert asked == ["sam2.1-tiny"]
    assert (segmenter.name, segmenter.signature) == ("sam2", "sam2.1-tiny-0123456789ab")


def test_the_plan_says_where_it_comes_from_and_what_it_costs(monkeypatch, tmp_path):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    base = override(preset("embedded"), {"segmenter": {"name": "sam2"}})
    models = named_models(base)
    assert models["segmenter"].name == "sam2.1-large"
    assert "0.9 GB" in str(models["segmenter"].place)
    grid = Grid((200, 928, 960), 10.0)
    memory, seconds = estimate(grid, 12.0, base, models)
    # 16 MiB for each of 2088 planes, and 1823 G operations at 50 G per second
    assert 33 < memory / 2**30 < 50
    assert 2088 * 36 < seconds < 3 * 2088 * 36

    folder = tmp_path / "sam2.1-tiny"
    folder.mkdir()
    (folder / "config.json").touch()
    small = named_models(override(base, {"segmenter": {"checkpoint": "facebook/sam2.1-hiera-tiny"}}))
    assert small["segmenter"].place == str(folder)
    cheaper = estimate(grid, 12.0, base, small)
    assert cheaper < (memory, seconds)
    own = named_models(override(base, {"segmenter": {"checkpoint": str(folder)}}))
    assert estimate(grid, 12.0, base, own) is None
    (tmp_path / "weights.pt").touch()
    with pytest.raises(DataError, match=r"segmenter\.checkpoint .*expected a folder .*found a file"):
        named_models(override(base, {"segmenter": {"checkpoint": str(tmp_path / "weights.pt")}}))
    with pytest.raises(InputError, match=r"segmenter\.checkpoint: expected the commit of someone/model"):
        named_models(override(base, {"segmenter": {"checkpoint": "someone/model"}}))


def test_it_is_listed_and_checked(monkeypatch, tmp_path):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    folder = tmp_path / "sam2.1-hiera-small"
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "model.safetensors").write_bytes(b"weights")
    listed = CliRunner().invoke(cryosam, ["models"])
    assert listed.exit_code == 0, listed.output
    for entry in SAM2S.values():
        for part in (entry.name, f"{entry.hub_id} {entry.revision}", entry.sha256):
            assert part in listed.output
    assert str(folder) in listed.output
    checked = CliRunner().invoke(cryosam, ["models", "--check"])
    assert checked.exit_code == 1
    assert f"{folder}: another SHA-256" in checked.output
