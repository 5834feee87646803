from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from copick_cryosam.sasi.labels import IGNORE
from copick_cryosam.sasi.losses import consistency, dice_focal, nt_xent
from copick_cryosam.sasi.settings import AugmentSettings, LossSettings
from copick_cryosam.sasi.spatial import Spatial


def _random(seed: int = 0, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes + 1, 4, 5, 6, generator=generator)
    return logits, torch.randint(classes + 1, (2, 4, 5, 6), generator=generator)


def test_dice_and_focal_are_the_formulas() -> None:
    logits, labels = _random()
    p = logits.softmax(dim=1)
    dice = 0.0
    for c in (1, 2, 3):
        y = (labels == c).float()
        dice += float(1 - 2 * (p[:, c] * y).sum() / (p[:, c].sum() + y.sum())) / 3
    own = p.gather(1, labels[:, None])
    focal = float((-((1 - own) ** 2) * own.log()).mean())
    assert float(dice_focal(logits, labels, None, LossSettings())) == pytest.approx(20 * dice + focal, rel=1e-4)
    cross_entropy = nn.functional.cross_entropy(logits, labels)
    plain = dice_focal(logits, labels, None, LossSettings(dice=0, focal=3, gamma=0))
    assert float(plain) == pytest.approx(3 * float(cross_entropy), rel=1e-5)


def test_ignored_voxels_and_voxels_of_no_weight_do_not_count() -> None:
    logits, labels = _random()
    labels[:, :, :, 3:] = IGNORE
    labels[0, 0, 0, 0] = 1
    changed = logits.clone()
    changed[:, :, :, :, 3:] = 50.0
    settings = LossSettings()
    assert torch.equal(dice_focal(logits, labels, None, settings), dice_focal(changed, labels, None, settings))
    cut = dice_focal(logits[..., :3], labels[..., :3], None, settings)
    torch.testing.assert_close(dice_focal(logits, labels, None, settings), cut)
    weights = torch.ones(labels.shape)
    weights[..., 2] = 0
    two = dice_focal(logits[..., :2], labels[..., :2], None, settings)
    torch.testing.assert_close(dice_focal(logits, labels, weights, settings), two)
    # twice the weight everywhere is the same loss
    torch.testing.assert_close(dice_focal(logits, labels, 2 * weights, settings), two)


@pytest.mark.parametrize("label", [0, IGNORE])
def test_windows_without_particles_give_finite_losses_and_gradients(label: int) -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    loss = dice_focal(logits, torch.full((1, 4, 4, 4), label), None, LossSettings(gamma=0.5))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert (float(loss.detach()) == 0) == (label == IGNORE)


@pytest.mark.parametrize("rotation", ["quarter", "any"])
def test_consistency_of_an_equivariant_net_is_zero(rotation: str) -> None:
    """A 1³ convolution with steep weights on a volume of two values: for quarter turns net(T x) = T net(x) exactly, and
    softmax is 1 in float32. For other turns it is so for the nearest voxel, not for interpolated values."""
    augment = AugmentSettings.model_validate({"rotation": rotation})
    net = nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([-400.0, 400.0, 0.0]).reshape(3, 1, 1, 1, 1))
        assert net.bias is not None
        net.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (4, 1, 9, 9, 9), generator=generator) * 2.0 - 1
    spatial = Spatial.draw(4, augment, 9, generator)
    inside = spatial.inside((9, 9, 9))
    assert not inside.all()
    found = net(spatial.apply(x, mode="nearest"))
    moved = spatial.apply(net(x), mode="nearest")
    loss = consistency(found, moved, inside, LossSettings())
    assert float(loss.detach()) == 0
    # and it is the transform that makes it so
    assert float(consistency(found, net(x), inside, LossSettings()).detach()) > 1


def test_consistency_falls_to_zero_with_the_margin_and_spares_the_target() -> None:
    logits, labels = _random()
    one_hot = nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    inside = torch.ones(labels.shape, dtype=torch.bool)
    losses = [float(consistency(m * one_hot, one_hot, inside, LossSettings())) for m in (0.0, 2.0, 8.0, 30.0, 120.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 10
    assert losses[-1] == 0
    target = one_hot.clone().requires_grad_()
    free = logits.clone().requires_grad_()
    consistency(free, target, inside, LossSettings()).backward()
    assert target.grad is None
    assert free.grad is not None
    assert float(free.grad.abs().sum()) > 0
    outside = consistency(logits, one_hot, ~inside, LossSettings())
    assert float(outside) == 0


def test_nt_xent_is_the_formula_and_blind_to_order_and_length() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 8, generator=generator) for _ in range(2))
    vectors = nn.functional.normalize(torch.cat([a, b]), dim=1)
    expected = 0.0
    for i in range(10):
        others = [math.exp(float(vectors[i] @ vectors[j]) / 0.5) for j in range(10) if j != i]
        expected -= math.log(math.exp(float(vectors[i] @ vectors[(i + 5) % 10]) / 0.5) / sum(others)) / 10
    assert float(nt_xent(a, b, 0.5)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(nt_xent(b, 3 * a, 0.5), nt_xent(a, b, 0.5))
    assert float(nt_xent(a, a, 0.1)) < float(nt_xent(a, b, 0.1))
    with pytest.raises(ValueError, match="at least 2"):
        nt_xent(a[:1], b[:1], 0.1)
