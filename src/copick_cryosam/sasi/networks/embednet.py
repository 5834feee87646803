"""The embedded encoder, EmbedNet, with a head for the classes.

Its features have cells of 2 x 2 x 2 voxels; the logits are interpolated to voxels. EmbedNet has seen many kinds of
particles at 10 Å per voxel: its shipped weights suit tomograms of about that voxel spacing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.encoders.embednet import STRIDE, EmbedNet
from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.settings import SasiSettings
from copick_cryosam.weights import load_weights

_MAPS = 2
"""Maps of EmbedNet: logits of foreground and centres."""
_HEAD = 32
"""Channels of the head between its two convolutions."""
_CLIP = 5.0
"""Input is cut off at this many standard deviations, as in EmbedNet's training."""


class EmbedNetDetector(Network):
    """The net.

    Parameters
    ----------
    classes : K, without the background
    net : its embedding, which tells kinds apart, and its maps of foreground and centres join the trunk's features
    frozen : keep the statistics of its batch normalisation, which a few windows would spoil, also while training
    """

    name = "embednet"
    window = 32
    divisor = 16

    def __init__(self, classes: int, net: EmbedNet, *, frozen: bool) -> None:
        super().__init__()
        self.net = net
        self.frozen = frozen
        self.embedding = net.channels[3]
        self.head = nn.Sequential(
            nn.Conv3d(net.channels[1] + net.dim + _MAPS, _HEAD, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv3d(_HEAD, classes + 1, 1),
        )
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation; frozen batch normalisation always evaluates."""
        super().train(mode)
        if self.frozen:
            for module in self.net.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """See `Network.forward`."""
        features = self.net.trunk(x.clamp(-_CLIP, _CLIP))
        # unit vectors, as strong together as the other features are each
        kind, maps = self.net.heads(features)
        logits = self.head(torch.cat([features, kind * self.net.dim**0.5, maps], dim=1))
        # cell i is centred on voxel 2 i + 0.5, which is what align_corners=False takes it for
        return F.interpolate(logits, scale_factor=STRIDE, mode="trilinear", align_corners=False)

    def embed(self, x: Tensor) -> Tensor:
        """See `Network.embed`."""
        return self.net.contract(x.clamp(-_CLIP, _CLIP))[3].mean(dim=(2, 3, 4))

    def learned(self) -> Iterator[nn.Parameter]:
        """See `Network.learned`."""
        return self.net.parameters()


def load(settings: SasiSettings, classes: int) -> EmbedNetDetector:
    """EmbedNet, of random weights or (`init`) the shipped ones, and a head of random weights.

    Raises
    ------
    NotFoundError
        The shipped weights are not there.
    """
    net = EmbedNet()
    frozen = settings.init == "embednet"
    if frozen:
        load_weights("embednet", net)
    return EmbedNetDetector(classes, net, frozen=frozen)
