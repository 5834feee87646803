"""MONAI's residual U-Net (SegResNet: Myronenko, 2018), of about the size of DeepFinder's, with group normalisation.

MONAI is an optional extra of this package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor

from copick_cryosam.errors import InputError
from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.settings import SasiSettings

_FILTERS = 20
"""Channels at full size; twice and four times as many below."""


class MonaiUnet(Network):
    """The net.

    Parameters
    ----------
    net : a `monai.networks.nets.SegResNet` of three levels
    """

    name = "monai-unet"
    window = 24
    divisor = 4
    embedding = 4 * _FILTERS

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """See `Network.forward`."""
        logits: Tensor = self.net(x)
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """See `Network.embed`."""
        deepest: Tensor = self.net.encode(x)[0]
        return deepest.mean(dim=(2, 3, 4))


def load(settings: SasiSettings, classes: int) -> MonaiUnet:
    """MONAI's net with random weights; nothing in the settings changes it.

    Raises
    ------
    InputError
        MONAI is not installed.
    """
    if find_spec("monai") is None:
        raise InputError(
            "architecture monai-unet: expected the package monai, found none",
            hint='Install it with: pip install "copick-cryosam[sasi]"; or choose deepfinder',
        )
    from monai.networks.nets.segresnet import SegResNet

    net = SegResNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes + 1,
        init_filters=_FILTERS,
        blocks_down=(1, 2, 2),
        blocks_up=(1, 1),
        norm=("GROUP", {"num_groups": 4}),
    )
    return MonaiUnet(net)
