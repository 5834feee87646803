"""What every plane segmenter must keep to, run over each registered backend."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import InputError
from copick_cryosam.segmenters import Decoded, PlaneSegmenter, available_segmenters, load_segmenter
from copick_cryosam.segmenters.sam import SamSegmenter
from copick_cryosam.segmenters.sam2 import Sam2Segmenter

CPU = torch.device("cpu")
SHAPE = (17, 40, 53)
RADIUS = 6.0
WINDOW = 25
AXES = (0, 1, 2)
UNTRAINED = ("sam", "sam2")
"""Their weights are a download; here they are random, and everything but finding things is asked of them."""


pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str, official_sam: ModuleType, random_sam2: ModuleType) -> PlaneSegmenter:
    if name == "promptnet" and find_spec("copick_cryosam.segmenters.promptnet") is None:
        pytest.skip("promptnet is not in this source tree")
    if name == "sam2":
        return Sam2Segmenter(random_sam2.random_sam2(), "random", SegmenterSettings(name=name), CPU)
    if name in UNTRAINED:
        return SamSegmenter(official_sam.random_sam(128, window=5), "random", SegmenterSettings(name=name), CPU)
    # what must be equal is asked in fp32; how near bf16 comes, see below
    return load_segmenter(SegmenterSettings(name=name, precision="fp32"), CPU)


@pytest.fixture(scope="module", params=available_segmenters())
def segmenter(request, official_sam, random_sam2) -> PlaneSegmenter:
    return load(request.param, official_sam, random_sam2)


@pytest.fixture(scope="module", params=[name for name in available_segmenters() if name not in UNTRAINED])
def trained(request, official_sam, random_sam2) -> PlaneSegmenter:
    """Those that know a bright ball when they see one."""
    return load(request.param, official_sam, random_sam2)


def ball_volume(shape=SHAPE, centre=(8, 22, 27), radius=RADIUS, noise=0.3) -> tuple[torch.Tensor, np.ndarray]:
    """A standardised volume with one bright ball in noise, and the ball's mask."""
    grid = np.indices(shape) - np.array(centre)[:, None, None, None]
    truth = (grid**2).sum(axis=0) <= radius**2
    values = truth + noise * np.random.default_rng(5).standard_normal(shape)
    return torch.as_tensor((values - values.mean()) / values.std(), dtype=torch.float32), truth


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return ball_volume()[0]


def some_prompts(volume: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts on different planes: the ball, the four corners of the plane, and an odd place between voxels."""
    rows, columns = (n for other, n in enumerate(volume.shape) if other != axis)
    length = volume.shape[axis]
    points = [
        (rows / 2, columns / 2),
        (0, 0),
        (0, columns - 1),
        (rows - 1, 0),
        (rows - 1, columns - 1),
        (rows / 3 + 0.4, columns / 4 - 0.3),
    ]
    planes = torch.linspace(0, length - 1, len(points)).round().to(torch.int64)
    clicks = torch.tensor(points, dtype=torch.float32)
    windows = torch.floor(clicks + 0.5).to(torch.int64) - WINDOW // 2
    return planes, clicks, windows


def outside_plane(windows: torch.Tensor, plane_shape: list[int]) -> torch.Tensor:
    offsets = torch.arange(WINDOW)
    rows, columns = windows[:, :1] + offsets, windows[:, 1:] + offsets
    bad_rows = (rows < 0) | (rows >= plane_shape[0])
    bad_columns = (columns < 0) | (columns >= plane_shape[1])
    return bad_rows[:, :, None] | bad_columns[:, None, :]


def assert_same(one: Decoded, other: Decoded) -> None:
    for field in ("logits", "iou", "presence", "prompt"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), atol=1e-4, rtol=1e-4, msg=field)


def test_unknown_segmenter_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"expected one of .*fake.*found 'nosuch'"):
        load_segmenter(SegmenterSettings(name="nosuch"), CPU)


def test_it_says_who_it_is(segmenter):
    assert segmenter.name in available_segmenters()
    assert isinstance(segmenter.signature, str)
    assert segmenter.signature


@pytest.mark.parametrize("axis", AXES)
def test_shapes_types_and_ranges(segmenter, volume, axis):
    embeddings = segmenter.embed(volume, axis, RADIUS)
    planes, clicks, windows = some_prompts(volume, axis)
    first = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, None)
    second = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, first.prompt)
    for decoded in (first, second):
        assert decoded.logits.shape == (len(planes), WINDOW, WINDOW)
        assert decoded.iou.shape == decoded.presence.shape == (len(planes),)
        assert len(decoded.prompt) == len(planes)
        for values in (decoded.logits, decoded.iou, decoded.presence):
            assert values.is_floating_point()
            assert torch.isfinite(values).all()
        for values in (decoded.iou, decoded.presence):
            assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("axis", AXES)
def test_voxels_beyond_the_plane_are_negative(segmenter, volume, axis):
    embeddings = segmenter.embed(volume, axis, RADIUS)
    planes, clicks, windows = some_prompts(volume, axis)
    plane_shape = [n for other, n in enumerate(volume.shape) if other != axis]
    outside = outside_plane(windows, plane_shape)
    assert outside[1:5].flatten(1).any(1).all()
    first = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, None)
    encouraged = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, first.prompt.abs())
    assert (first.logits[outside] < 0).all()
    assert (encouraged.logits[outside] < 0).all()


def window_larger_than_the_plane(segmenter: PlaneSegmenter) -> tuple[np.ndarray, np.ndarray]:
    """The mask in the part of the window that lies in the plane, and the ball there."""
    volume, truth = ball_volume((9, 13, 15), (4, 6, 7), 4.0)
    embeddings = segmenter.embed(volume, 0, 4.0)
    click, window = torch.tensor([[6.0, 7.0]]), torch.tensor([[6 - 8, 7 - 8]])
    decoded = segmenter.decode(embeddings, torch.tensor([4]), click, window, 17, None)
    assert decoded.logits.shape == (1, 17, 17)
    mask = decoded.logits[0].numpy() > 0
    within = mask[2 : 2 + 13, 1 : 1 + 15]
    assert mask.sum() == within.sum()
    return within, truth[4]


def test_a_window_larger_than_the_plane(segmenter):
    window_larger_than_the_plane(segmenter)


def test_the_ball_is_found_in_a_window_larger_than_the_plane(trained):
    mask, ball = window_larger_than_the_plane(trained)
    assert mask[ball].mean() > 0.5


@pytest.mark.parametrize("axis", AXES)
def test_decoding_twice_gives_the_same(segmenter, volume, axis):
    prompts = some_prompts(volume, axis)
    once, twice = (segmenter.decode(segmenter.embed(volume, axis, RADIUS), *prompts, WINDOW, None) for _ in range(2))
    for field in ("logits", "iou", "presence", "prompt"):
        assert torch.equal(getattr(once, field), getattr(twice, field))


@pytest.mark.parametrize("axis", AXES)
def test_a_batch_equals_its_prompts_one_by_one(segmenter, volume, axis):
    embeddings = segmenter.embed(volume, axis, RADIUS)
    planes, clicks, windows = some_prompts(volume, axis)
    first = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, None)
    second = segmenter.decode(embeddings, planes, clicks, windows, WINDOW, first.prompt)
    for n in range(len(planes)):
        one = slice(n, n + 1)
        alone = segmenter.decode(embeddings, planes[one], clicks[one], windows[one], WINDOW, None)
        again = segmenter.decode(embeddings, planes[one], clicks[one], windows[one], WINDOW, first.prompt[one])
        for batch, single in ((first, alone), (second, again)):
            expected = Decoded(
                logits=batch.logits[one], iou=batch.iou[one], presence=batch.presence[one], prompt=batch.prompt[one]
            )
            assert_same(single, expected)


def test_each_prompt_reads_its_own_plane(segmenter, volume):
    """The same click on the ball's middle plane and far above it must not give the same answer."""
    tall, _ = ball_volume((41, 40, 40), (20, 20, 20))
    embeddings = segmenter.embed(tall, 0, RADIUS)
    clicks = torch.full((2, 2), 20.0)
    windows = torch.full((2, 2), 20 - WINDOW // 2)
    here = segmenter.decode(embeddings, torch.tensor([20, 2]), clicks, windows, WINDOW, None)
    swapped = segmenter.decode(embeddings, torch.tensor([2, 20]), clicks, windows, WINDOW, None)
    torch.testing.assert_close(here.logits, swapped.logits.flip(0), atol=1e-4, rtol=1e-4)
    assert here.presence[0] >= here.presence[1]
    assert not torch.allclose(here.logits[0], here.logits[1], atol=0.1)


def test_the_mask_prompt_matters(segmenter, volume):
    embeddings = segmenter.embed(volume, 0, RADIUS)
    prompt = (torch.tensor([8]), torch.tensor([[22.0, 27.0]]), torch.tensor([[10, 15]]), WINDOW)
    bare = segmenter.decode(embeddings, *prompt, None)
    told = segmenter.decode(embeddings, *prompt, bare.prompt)
    assert not torch.allclose(bare.logits, told.logits, atol=1e-3)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.0, -1.0)])
def test_a_planted_ball_is_found_where_it_is(trained, axis, shift):
    """The click may be off the centre and the window off the ball; the mask stays on the ball."""
    volume, truth = ball_volume()
    centre = np.array((8, 22, 27))
    others = [other for other in range(3) if other != axis]
    middle = centre[others].astype(float)
    click = middle + shift
    window = np.floor(click + 0.5).astype(int) - WINDOW // 2
    decoded = trained.decode(
        trained.embed(volume, axis, RADIUS),
        torch.tensor([centre[axis]]),
        torch.tensor(click[None], dtype=torch.float32),
        torch.tensor(window[None]),
        WINDOW,
        None,
    )
    mask = decoded.logits[0].numpy() > 0
    voxels = np.argwhere(mask) + window
    assert np.linalg.norm(voxels.mean(axis=0) - middle) < 1.5
    plane = np.take(truth, centre[axis], axis=axis)
    found = np.zeros_like(plane)
    found[tuple(voxels.T)] = True
    assert 2 * (found & plane).sum() / (found.sum() + plane.sum()) > 0.6


def test_promptnet_in_bf16_draws_the_same_masks():
    volume, truth = ball_volume()
    answers = {}
    for precision in ("fp32", "bf16"):
        segmenter = load_segmenter(SegmenterSettings(name="promptnet", precision=precision), CPU)
        embeddings = segmenter.embed(volume, 0, RADIUS)
        window = torch.tensor([[22 - WINDOW // 2, 27 - WINDOW // 2]])
        answers[precision] = segmenter.decode(
            embeddings, torch.tensor([8]), torch.tensor([[22.0, 27.0]]), window, WINDOW, None
        )
        assert answers[precision].logits.dtype == torch.float32
    exact, near = answers["fp32"], answers["bf16"]
    assert 0 < (exact.logits - near.logits).abs().max() < 1
    assert ((exact.logits > 0) != (near.logits > 0)).sum() <= 0.05 * truth[8].sum()
    assert (exact.iou - near.iou).abs().max() < 0.05
