"""DeepFinder's 3D U-Net (Moebel et al., 2021, figure 2), which SaSi takes as its backbone.

903,060 parameters at 4 outputs, as published: 3³ convolutions and ReLU, no normalisation, two poolings. Before each
concatenation the deeper features are doubled in size by repetition and pass a 2³ convolution.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.settings import SasiSettings


def _convs(*channels: int) -> nn.Sequential:
    """3³ convolutions from one number of channels to the next, a ReLU behind each."""
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(channels):
        layers += [nn.Conv3d(inside, outside, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _Up(nn.Module):
    """Twice the size by repetition, then a 2³ convolution and ReLU.

    An even kernel has no middle: as in Keras, of which the published net is made, the volume is padded by one voxel
    at the far ends.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        grown = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.relu(self.conv(F.pad(grown, (0, 1, 0, 1, 0, 1))))


class DeepFinder(Network):
    """The net.

    Parameters
    ----------
    classes : K, without the background
    """

    name = "deepfinder"
    window = 24
    divisor = 4
    embedding = 64

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.at1 = _convs(1, 32, 32)
        self.at2 = _convs(32, 48, 48)
        self.at4 = _convs(48, 64, 64, 64, 64)
        self.up2, self.out2 = _Up(64), _convs(64 + 48, 48, 48)
        self.up1, self.out1 = _Up(48), _convs(48 + 32, 32, 32)
        self.logits = nn.Conv3d(32, classes + 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                # torch's own initialisation lets the signal fade in so many layers of ReLU without normalisation
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is self.logits else "relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def _contract(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s1 = self.at1(x)
        s2 = self.at2(F.max_pool3d(s1, 2))
        return s1, s2, self.at4(F.max_pool3d(s2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """See `Network.forward`."""
        s1, s2, s4 = self._contract(x)
        u2 = self.out2(torch.cat([self.up2(s4), s2], dim=1))
        u1 = self.out1(torch.cat([self.up1(u2), s1], dim=1))
        logits: Tensor = self.logits(u1)
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """See `Network.embed`."""
        return self._contract(x)[2].mean(dim=(2, 3, 4))


def load(settings: SasiSettings, classes: int) -> DeepFinder:
    """DeepFinder's net with random weights; nothing in the settings changes it."""
    return DeepFinder(classes)
