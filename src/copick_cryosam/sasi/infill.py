"""Self-augmented volume infill (SaSi, figure 3; after AugMix): a window is filled with moved copies of its particles.

Mixed, as published: k copies, each shifted, rotated and flipped at random, are averaged with Dirichlet weights, and
mixed with the window itself. The paper takes the argmax of the labels mixed in the same way. Here it is taken over the
foreground classes alone: with the background among them, copies of a low weight would be in the volume and not in the
labels. Where noise is strong, copies of a low weight cannot be seen, and a net learns to label noise.

Pasted: the labelled voxels of the copies replace the window's, at full strength, where it has no particle itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from copick_cryosam.sasi.settings import InfillSettings
from copick_cryosam.sasi.spatial import Spatial

_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Windows:
    """A batch to learn from.

    Attributes
    ----------
    volume : standardised, particles bright; float32, shape (B, 1, Z, Y, X)
    labels : see `VoxelLabels.labels`; int64, shape (B, Z, Y, X)
    weights : see `VoxelLabels.weights`; float32, shape (B, Z, Y, X)
    """

    volume: Tensor
    labels: Tensor
    weights: Tensor

    def moved(self, spatial: Spatial, edge: int) -> Windows:
        """All three transformed alike, cut to `edge`; beyond the window the mean, and background."""
        return Windows(
            spatial.apply(self.volume, edge),
            spatial.apply_labels(self.labels, edge),
            # what comes from outside is as sure as any background
            spatial.apply(self.weights[:, None], edge, mode="nearest", fill=1.0)[:, 0],
        )


def draw_weights(count: int, settings: InfillSettings, generator: torch.Generator) -> Tensor:
    """Weights of the window itself, first, and of its copies; each row sums to 1; shape (B, k + 1)."""
    # torch's Dirichlet distribution takes no generator
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    copies = rng.dirichlet([settings.alpha] * settings.chains, size=count)
    # a copy of no weight at all would win no voxel
    copies = np.maximum(copies, _LEAST)
    own = np.full((count, 1), settings.skip)
    return torch.from_numpy(np.concatenate([own, (1 - settings.skip) * copies], axis=1)).float()


def paste(layers: list[Windows]) -> Windows:
    """The first layer, with the labelled voxels of the others where no layer before has a particle."""
    volume, labels, weights = layers[0].volume, layers[0].labels, layers[0].weights
    for layer in layers[1:]:
        free = (labels <= 0) & (layer.labels > 0)
        volume = torch.where(free[:, None], layer.volume, volume)
        weights = torch.where(free, layer.weights, weights)
        labels = torch.where(free, layer.labels, labels)
    return Windows(volume, labels, weights)


def mix(layers: list[Windows], weights: Tensor) -> Windows:
    """The weighted mean of the volumes, and the labels of all layers together.

    Of several foreground classes at a voxel, the one of the greatest weight, summed over the layers that have it, wins.
    Where no layer has any, the first one, the window itself, says whether it is background or ignored.

    Parameters
    ----------
    layers : of one shape
    weights : shape (B, number of layers)
    """
    weights = weights.to(layers[0].volume.device)
    shares = [weights[:, i, None, None, None] for i in range(len(layers))]
    volume = torch.zeros_like(layers[0].volume)
    for layer, share in zip(layers, shares, strict=True):
        volume += share[:, None] * layer.volume
    # background or ignored; where the window has a particle itself, the loop below has it too
    labels, most = layers[0].labels.clamp(max=0), torch.zeros_like(layers[0].weights)
    sure = layers[0].weights
    for layer in layers:
        same = [(other.labels == layer.labels).float() * share for other, share in zip(layers, shares, strict=True)]
        support = torch.stack(same).sum(dim=0)
        wins = (layer.labels > 0) & (support > most)
        confidence = sum((s * other.weights for s, other in zip(same, layers, strict=True)), torch.zeros_like(support))
        labels = torch.where(wins, layer.labels, labels)
        sure = torch.where(wins, confidence / support.clamp(min=_LEAST), sure)
        most = torch.where(wins, support, most)
    return Windows(volume, labels, sure)
