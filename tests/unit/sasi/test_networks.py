from __future__ import annotations

import pytest
import torch

from copick_cryosam.errors import InputError
from copick_cryosam.sasi.networks import available_networks, load_network
from copick_cryosam.sasi.settings import SasiSettings

EVERY = ["deepfinder", "embednet"]  # MONAI's is slow to import and has a file of its own


def _settings(name: str, **more: object) -> SasiSettings:
    return SasiSettings.model_validate({"architecture": name, "init": "none", **more})


def test_deepfinder_has_the_published_number_of_parameters() -> None:
    net = load_network(_settings("deepfinder"), 3)
    assert sum(p.numel() for p in net.parameters()) == 903_060


def test_the_registry_names_its_nets() -> None:
    assert available_networks() == ["deepfinder", "embednet", "monai-unet"]


@pytest.mark.parametrize("name", EVERY)
def test_every_net_keeps_to_the_interface(name: str) -> None:
    net = load_network(_settings(name), 2)
    assert net.name == name
    assert net.window % net.divisor == 0
    edge = net.divisor if name == "deepfinder" else 2 * net.divisor
    x = torch.randn(2, 1, edge, edge, edge, generator=torch.Generator().manual_seed(0))
    logits = net(x)
    assert logits.shape == (2, 3, edge, edge, edge)
    assert net.embed(x).shape == (2, net.embedding)
    # both heads train the net, and nothing in it is left out
    (logits.float().square().mean() + net.embed(x).square().mean()).backward()
    untrained = [key for key, p in net.named_parameters() if p.grad is None]
    assert untrained == []


@pytest.mark.parametrize("name", EVERY)
def test_weights_follow_the_seed_and_leave_other_random_numbers_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    one, same = load_network(_settings(name), 2), load_network(_settings(name), 2)
    other = load_network(_settings(name, training={"seed": 1}), 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_deepfinder_keeps_the_signals_size_at_the_start() -> None:
    net = load_network(_settings("deepfinder"), 3)
    with torch.no_grad():
        spread = float(net(torch.randn(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))).std())
    assert 0.1 < spread < 10


def test_a_window_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(InputError, match=r"multiple of 16 for embednet, found 24.*Choose 32 or 16"):
        load_network(_settings("embednet", window=24), 1)
    assert load_network(_settings("deepfinder", window=32), 1).window == 32
    with pytest.raises(InputError, match="at least one, found 0"):
        load_network(_settings("deepfinder"), 0)


def test_embednet_starts_from_the_shipped_weights_and_keeps_their_statistics() -> None:
    from copick_cryosam.encoders.embednet import EmbedNet
    from copick_cryosam.weights import load_weights

    net = load_network(_settings("embednet", init="embednet"), 2)
    shipped = EmbedNet()
    load_weights("embednet", shipped)
    state = dict(net.state_dict())
    shared = {f"net.{key}": value for key, value in shipped.state_dict().items() if f"net.{key}" in state}
    assert len(shared) > 80
    assert all(torch.equal(state[key], value) for key, value in shared.items())
    x = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    net.train()
    in_training = net(x)
    net.eval()
    torch.testing.assert_close(net(x), in_training)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in shared.items())
    # random ones learn their statistics
    fresh = load_network(_settings("embednet"), 2)
    before = fresh.state_dict()["net.stem.1.running_mean"].clone()
    fresh.train()
    fresh(x)
    assert not torch.equal(fresh.state_dict()["net.stem.1.running_mean"], before)


def test_trunk_and_maps_of_embednet_are_those_of_its_forward() -> None:
    from copick_cryosam.encoders.embednet import EmbedNet

    net = EmbedNet().eval()
    x = torch.randn(1, 1, 16, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net.maps(net.trunk(x)), net(x)[1])
