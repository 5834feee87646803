"""Which of SAM's four masks is taken."""

from __future__ import annotations

import pytest
import torch

from copick_cryosam.segmenters.sam_choice import choose


def disc(radius: float, column: int = 16) -> torch.Tensor:
    grid = torch.arange(32)
    return ((grid - 16)[:, None] ** 2 + (grid - column)[None, :] ** 2) <= radius**2


@pytest.fixture
def masks() -> torch.Tensor:
    """The single mask, then a part, the whole and a group of wholes."""
    return torch.stack([disc(6), disc(3), disc(7), disc(14)])[None]


IOU = torch.tensor([[0.95, 0.7, 0.8, 0.9]])


def test_single_is_always_the_single_mask(masks):
    for before in (None, disc(3)[None]):
        assert choose(IOU, masks, before, "single").tolist() == [0]


def test_best_is_by_predicted_iou_among_the_three(masks):
    assert choose(IOU, masks, disc(3)[None], "best").tolist() == [3]


@pytest.mark.parametrize(("radius", "expected"), [(3.5, 1), (7.5, 2), (15, 3)])
def test_consistent_follows_the_mask_before(masks, radius, expected):
    assert choose(IOU, masks, disc(radius)[None], "consistent").tolist() == [expected]


@pytest.mark.parametrize("before", [None, torch.zeros(1, 32, 32, dtype=torch.bool)])
def test_consistent_is_best_where_there_is_no_mask_before(masks, before):
    assert choose(IOU, masks, before, "consistent").tolist() == [3]


def test_consistent_is_best_where_nothing_touches_the_mask_before(masks):
    far = torch.zeros(1, 32, 32, dtype=torch.bool)
    far[:, 0, 0] = True
    assert choose(IOU, masks, far, "consistent").tolist() == [3]


def test_the_ratio_of_areas_counts(masks):
    """The IoU alone would take the larger mask, of better predicted IoU; with the ratio the smaller one wins."""
    before = torch.zeros(1, 1, 100, dtype=torch.bool)
    before[..., :40] = True
    two = torch.zeros(1, 4, 1, 100, dtype=torch.bool)
    two[:, 2, :, :80] = True  # IoU 40 / 80 = 0.5, ratio 0.5
    two[:, 3, :, 15:40] = True  # IoU 25 / 40 = 0.625, ratio 0.625
    even = torch.tensor([[0.9, 0.1, 0.9, 0.6]])
    assert choose(even, two, before, "consistent").tolist() == [3]
    assert 0.9 * 0.5 > 0.6 * 0.625
    assert 0.9 * 0.5**2 < 0.6 * 0.625**2


@pytest.mark.parametrize(("radius", "expected"), [(3.5, 1), (7.5, 2), (15, 3)])
def test_negative_predictions_do_not_turn_the_order_around(masks, radius, expected):
    iou = torch.tensor([[0.9, -0.2, -0.2, -0.2]])
    assert choose(iou, masks, disc(radius)[None], "consistent").tolist() == [expected]


def test_predictions_over_one_are_still_compared(masks):
    """SAM predicts IoUs of up to about 1.05."""
    assert choose(torch.tensor([[1.0, 1.01, 1.03, 1.02]]), masks, None, "best").tolist() == [2]


def test_each_prompt_chooses_for_itself(masks):
    before = torch.stack([disc(3), disc(15), disc(7)])
    chosen = choose(IOU.expand(3, -1), masks.expand(3, -1, -1, -1), before, "consistent")
    assert chosen.tolist() == [1, 3, 2]
