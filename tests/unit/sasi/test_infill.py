from __future__ import annotations

from typing import Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from copick_cryosam.sasi.infill import Windows, draw_weights, mix
from copick_cryosam.sasi.labels import IGNORE
from copick_cryosam.sasi.settings import AugmentSettings, InfillSettings
from copick_cryosam.sasi.spatial import Spatial, cut_edge

Kind = Literal["any", "quarter", "beam", "none"]
KINDS: list[Kind] = ["any", "quarter", "beam", "none"]


def _ball(shape: tuple[int, ...], centre: Tensor, radius: float) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return sum(((a - c) ** 2 for a, c in zip(axes, centre, strict=True)), torch.zeros(())) <= radius**2


@given(
    kind=st.sampled_from(KINDS),
    edge=st.sampled_from([11, 12]),
    chains=st.integers(1, 4),
    alpha=st.sampled_from([0.05, 1.0, 10.0]),
    seed=st.integers(0, 10_000),
    centres=st.lists(st.tuples(*3 * [st.floats(-5, 5)]), min_size=1, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_every_whole_copy_survives(
    kind: Kind, edge: int, chains: int, alpha: float, seed: int, centres: list[tuple[float, float, float]]
) -> None:
    """Balls of one class, then of one class each: every copy of a ball that lies within the window is in the labels,
    whole, but for voxels that other classes' copies cover too."""
    radius = 2.2
    augment, how = AugmentSettings(rotation=kind), InfillSettings(chains=chains, alpha=alpha)
    n = cut_edge(edge, augment)
    for classes in ([1] * len(centres), list(range(1, len(centres) + 1))):
        labels = torch.zeros(1, n, n, n, dtype=torch.long)
        for number, centre in zip(classes, centres, strict=True):
            labels[0][_ball((n, n, n), torch.tensor(centre), radius)] = number
        windows = Windows(torch.zeros(1, 1, n, n, n), labels, torch.ones(1, n, n, n))
        generator = torch.Generator().manual_seed(seed)
        drawn = [Spatial.draw(1, augment, edge, generator) for _ in range(chains + 1)]
        layers = [windows.moved(t, edge) for t in drawn]
        result = mix(layers, draw_weights(1, how, generator)).labels[0]
        where = [
            (number, (t.matrix[0] @ torch.tensor(centre).double() + t.shift[0]))
            for t in drawn
            for number, centre in zip(classes, centres, strict=True)
        ]
        for number, centre in where:
            if bool((centre.abs() + radius > (edge - 1) / 2).any()):
                continue
            # nearest interpolation moves the surface by less than a voxel's half diagonal
            core = _ball((edge, edge, edge), centre, radius - 0.87)
            others = torch.zeros_like(core)
            for other, there in where:
                if other != number:
                    others |= _ball((edge, edge, edge), there, radius + 0.87)
            assert bool((result[core & ~others] == number).all())
            assert bool((result[core] > 0).all())


def test_the_volume_is_the_weighted_mean_and_all_foreground_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [
        Windows(
            torch.randn(2, 1, 3, 4, 5, generator=generator),
            torch.randint(-1, 4, (2, 3, 4, 5), generator=generator),
            torch.rand(2, 3, 4, 5, generator=generator),
        )
        for _ in range(3)
    ]
    shares = torch.tensor([[0.45, 0.35, 0.2], [0.4, 0.25, 0.35]])
    mixed = mix(layers, shares)
    expected = sum(shares[:, i, None, None, None, None] * layer.volume for i, layer in enumerate(layers))
    torch.testing.assert_close(mixed.volume, expected)
    for b in range(2):
        for voxel in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5)):
            at = (b, *voxel.tolist())
            support: dict[int, float] = {}
            for i, layer in enumerate(layers):
                label = int(layer.labels[at])
                if label > 0:
                    support[label] = support.get(label, 0.0) + float(shares[b, i])
            if support:
                best = max(support, key=lambda k: support[k])
                assert mixed.labels[at] == best
                assert mixed.weights[at] <= max(float(v.weights[at]) for v in layers if v.labels[at] == best) + 1e-6
            else:
                assert mixed.labels[at] == layers[0].labels[at]
                assert mixed.weights[at] == layers[0].weights[at]


def test_ignored_stays_so_only_where_no_copy_is() -> None:
    blank = torch.zeros(1, 1, 1, 1, 3)
    ones = torch.ones(1, 1, 1, 3)
    window = Windows(blank, torch.tensor([IGNORE, IGNORE, 0]).reshape(1, 1, 1, 3), ones)
    copy = Windows(blank, torch.tensor([2, 0, IGNORE]).reshape(1, 1, 1, 3), ones)
    assert mix([window, copy], torch.tensor([[0.5, 0.5]])).labels.flatten().tolist() == [2, IGNORE, 0]


def test_weights_sum_to_one_and_follow_the_seed() -> None:
    how = InfillSettings(chains=3, skip=0.6, alpha=0.01)
    drawn = draw_weights(40, how, torch.Generator().manual_seed(2))
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(40))
    assert bool((drawn > 0).all())
    torch.testing.assert_close(drawn[:, 0], torch.full((40,), 0.6))
    assert torch.equal(drawn, draw_weights(40, how, torch.Generator().manual_seed(2)))
    assert not torch.equal(drawn, draw_weights(40, how, torch.Generator().manual_seed(3)))
