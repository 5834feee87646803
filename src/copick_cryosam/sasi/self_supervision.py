"""The self-supervised part of SaSi: SimCLR on windows that nobody labelled.

Two views of a window, each moved in its own way, should be close in the net's deepest features, and far from those of
other windows. A head of ReLU and one linear layer stands between; it is dropped after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from copick_cryosam.sasi.losses import nt_xent
from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.settings import SelfSupervisionSettings


class ContrastiveHead(nn.Module):
    """Deepest features (B, e) -> vectors that are compared (B, width)."""

    def __init__(self, embedding: int, settings: SelfSupervisionSettings, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.ReLU(), nn.Linear(embedding, settings.width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        vectors: Tensor = self.layers(x)
        return vectors


def contrastive_loss(
    network: Network, head: ContrastiveHead, views: tuple[Tensor, Tensor], settings: SelfSupervisionSettings
) -> Tensor:
    """NT-Xent of two views (B, 1, W, W, W) of the same windows."""
    first, second = (head(network.embed(view)) for view in views)
    return nt_xent(first, second, settings.temperature)
