from __future__ import annotations

import pytest
import torch

from copick_cryosam.errors import InputError
from copick_cryosam.sasi.networks import load_network
from copick_cryosam.sasi.settings import SasiSettings

SETTINGS = SasiSettings(architecture="monai-unet", init="none")


def test_the_net_keeps_to_the_interface_and_follows_the_seed() -> None:
    pytest.importorskip("monai", reason="monai is an optional extra")
    state = torch.random.get_rng_state()
    net, same = load_network(SETTINGS, 2), load_network(SETTINGS, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    assert 0.5e6 < sum(p.numel() for p in net.parameters()) < 1.5e6
    for edge in (net.divisor, 3 * net.divisor):
        x = torch.randn(2, 1, edge, edge, edge, generator=torch.Generator().manual_seed(0))
        logits = net(x)
        assert logits.shape == (2, 3, edge, edge, edge)
        assert net.embed(x).shape == (2, net.embedding)
    (logits.square().mean() + net.embed(x).square().mean()).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_without_monai_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copick_cryosam.sasi.networks.monai_unet.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"expected the package monai.*pip install \"copick-cryosam\[sasi\]\""):
        load_network(SETTINGS, 1)
