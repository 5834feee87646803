"""Windows to learn from: cut around labelled points, the classes taking turns, or anywhere; moved and filled.

Cubes are cut larger than the windows (`spatial.cut_edge`), so that turned windows are whole; beyond the tomogram
there is its mean, 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.sasi.infill import Windows, draw_weights, mix, paste
from copick_cryosam.sasi.labels import label_window
from copick_cryosam.sasi.points import ParticleClass, TrainingTomogram
from copick_cryosam.sasi.settings import SasiSettings
from copick_cryosam.sasi.spatial import Spatial, cut_edge


class Cutter:
    """Cuts windows out of the tomograms of a training.

    Parameters
    ----------
    edge : of a window, voxels
    """

    def __init__(
        self,
        tomograms: Sequence[TrainingTomogram],
        classes: Sequence[ParticleClass],
        settings: SasiSettings,
        edge: int,
        device: torch.device,
    ) -> None:
        self.tomograms, self.classes, self.settings = tomograms, classes, settings
        self.edge, self.cut = edge, cut_edge(edge, settings.augment)
        self.device = device
        self._points = [_points_of(tomograms, number) for number in range(1, len(classes) + 1)]

    @cached_property
    def _everywhere(self) -> list[tuple[int, NDArray[np.int64]]]:
        return [(t, centre) for t, one in enumerate(self.tomograms) for centre in _centres(one, self.edge)]

    def labelled(self, count: int, generator: torch.Generator) -> Windows:
        """Windows around labelled points, classes in turn, points by their weight, and a share from anywhere
        (`training.anywhere`); moved, and filled with copies."""
        anywhere = round(self.settings.training.anywhere * count)
        places = self._draw_points(count - anywhere, generator) + self._draw_places(anywhere, generator)
        return self._moved(self._cubes(places, self.cut), generator)

    def around(self, which: Sequence[tuple[int, int]]) -> Windows:
        """Windows exactly around points (tomogram, point), with their labels; for held-out ones."""
        return self._cubes([(t, _middle(self.tomograms[t].labelled.points.zyx[i])) for t, i in which], self.edge)

    def views(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of windows from anywhere, each moved in its own way; (B, 1, W, W, W) both."""
        cubes = self._cubes(self._draw_places(count, generator), self.cut, labels=False)
        first, second = (
            Spatial.draw(count, self.settings.augment, self.edge, generator).apply(cubes.volume, self.edge)
            for _ in range(2)
        )
        return first, second

    def _moved(self, cubes: Windows, generator: torch.Generator) -> Windows:
        """A moved window, or the mix of itself and moved copies of it (SaSi, figure 3)."""
        infill, count = self.settings.infill, len(cubes.volume)
        layers = [
            cubes.moved(Spatial.draw(count, self.settings.augment, self.edge, generator), self.edge)
            for _ in range(1 + infill.chains * infill.enabled)
        ]
        if not infill.enabled:
            return layers[0]
        if infill.mode == "paste":
            return paste(layers)
        weights = draw_weights(count, infill, generator)
        mixed = mix(layers, weights)
        if not infill.keep_noise:
            return mixed
        # the layers' noise is independent but for what they share of the cube
        weakened = weights.square().sum(dim=1).sqrt()[:, None, None, None, None].to(self.device)
        return replace(mixed, volume=mixed.volume / weakened)

    def _draw_places(self, count: int, generator: torch.Generator) -> list[tuple[int, NDArray[np.int64]]]:
        drawn = torch.randint(len(self._everywhere), (count,), generator=generator).tolist()
        return [self._everywhere[k] for k in drawn]

    def _draw_points(self, count: int, generator: torch.Generator) -> list[tuple[int, NDArray[np.int64]]]:
        number = torch.randperm(len(self.classes), generator=generator).tolist()
        drawn = []
        for turn in itertools.islice(itertools.cycle(number), count):
            places, weights = self._points[turn]
            drawn.append(places[int(torch.multinomial(weights, 1, generator=generator))])
        return drawn

    def _cubes(self, places: Sequence[tuple[int, NDArray[np.int64]]], edge: int, *, labels: bool = True) -> Windows:
        """Cubes around voxels of tomograms, on the device."""
        shape = (edge, edge, edge)
        volumes = np.zeros((len(places), 1, *shape), dtype=np.float32)
        numbers = np.zeros((len(places), *shape), dtype=np.int64)
        weights = np.ones((len(places), *shape), dtype=np.float32)
        for k, (t, middle) in enumerate(places):
            one = self.tomograms[t]
            z, y, x = (int(corner) for corner in middle - (edge - 1) // 2)
            cut_out(one.volume, (z, y, x), volumes[k, 0])
            if labels:
                found = label_window(one.labelled, self.classes, (z, y, x), shape, self.settings.labels)
                numbers[k], weights[k] = found.labels, found.weights
        return Windows(*(torch.from_numpy(each).to(self.device) for each in (volumes, numbers, weights)))


def cut_out(volume: NDArray[np.float32], corner: tuple[int, int, int], into: NDArray[np.float32]) -> None:
    """Copy what lies at `corner` (may be negative) into an array; what lies beyond the volume stays as it is."""
    low = np.maximum(corner, 0)
    high = np.minimum(np.add(corner, into.shape), volume.shape)
    if (low < high).all():
        inner = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
        into[inner] = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def _points_of(
    tomograms: Sequence[TrainingTomogram], number: int
) -> tuple[list[tuple[int, NDArray[np.int64]]], Tensor]:
    """Where the points of a class lie whose weight is above zero: tomogram and voxel of each; and the weights."""
    places, weights = [], []
    for t, one in enumerate(tomograms):
        some = one.labelled
        for i in np.flatnonzero((some.classes == number) & (some.weights > 0)):
            places.append((t, _middle(some.points.zyx[i])))
            weights.append(some.weights[i])
    return places, torch.tensor(weights, dtype=torch.float64)


def _middle(point: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(point + 0.5).astype(np.int64)


def _centres(one: TrainingTomogram, edge: int) -> list[NDArray[np.int64]]:
    """Middles of windows that slide over a tomogram by half of their edge, the last ones ending with it."""
    axes = []
    for size in one.volume.shape:
        last = max(size - edge, 0)
        starts = sorted({*range(0, last + 1, max(edge // 2, 1)), last})
        axes.append([start + (edge - 1) // 2 for start in starts])
    return [np.array(each, dtype=np.int64) for each in itertools.product(*axes)]
