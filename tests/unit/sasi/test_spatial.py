from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copick_cryosam.sasi.settings import AugmentSettings
from copick_cryosam.sasi.spatial import Spatial, cut_edge

Kind = Literal["any", "quarter", "beam", "none"]
EXACT: list[Kind] = ["quarter", "none"]


def _drawn(kind: Kind, count: int, edge: int, seed: int, shift: float = 0.25) -> Spatial:
    augment = AugmentSettings(rotation=kind, shift=shift)
    return Spatial.draw(count, augment, edge, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["any", "quarter", "beam", "none"])
def test_matrices_are_orthogonal_and_drawn_alike_from_one_seed(kind: Kind) -> None:
    one, same = _drawn(kind, 50, 24, 0), _drawn(kind, 50, 24, 0)
    assert torch.equal(one.matrix, same.matrix)
    assert torch.equal(one.shift, same.shift)
    torch.testing.assert_close(one.matrix @ one.matrix.mT, torch.eye(3).double().expand(50, 3, 3), atol=1e-12, rtol=0)
    assert one.shift.abs().max() == 6
    assert set(torch.linalg.det(one.matrix).round().tolist()) == {-1.0, 1.0}
    if kind == "beam":
        assert (one.matrix[:, 0, 1:] == 0).all()


def test_quarter_turns_reach_all_24_rotations() -> None:
    augment = AugmentSettings(rotation="quarter", flip=False, shift=0)
    drawn = Spatial.draw(600, augment, 8, torch.Generator().manual_seed(1)).matrix
    assert len({tuple(m.flatten().tolist()) for m in drawn}) == 24
    assert torch.equal(torch.linalg.det(drawn).round(), torch.ones(600).double())


@given(edge=st.integers(3, 6), larger=st.integers(0, 2), seed=st.integers(0, 1000), kind=st.sampled_from(EXACT))
@settings(max_examples=40, deadline=None)
def test_quarter_turns_take_voxels_onto_voxels(edge: int, larger: int, seed: int, kind: Kind) -> None:
    n = edge + 2 * larger
    x = torch.arange(n**3).reshape(1, 1, n, n, n)
    spatial = _drawn(kind, 1, edge, seed)
    moved = spatial.apply(x, edge, fill=-1)[0, 0]
    inside = spatial.inside((n, n, n), edge)[0]
    assert torch.equal(moved >= 0, inside)
    for out in torch.nonzero(inside):
        q = out - (edge - 1) / 2 - spatial.shift[0]
        source = (spatial.matrix[0].T @ q + (n - 1) / 2).long()
        assert moved[tuple(out)] == x[0, 0][tuple(source)]


@pytest.mark.parametrize(("n", "edge"), [(7, 7), (8, 8), (10, 6), (9, 5), (9, 6)])
def test_interpolation_agrees_with_exact_moves(n: int, edge: int) -> None:
    # A turn by a hair less than a quarter is interpolated, and must come out next to the exact one.
    x = torch.randn(3, 2, n, n, n, generator=torch.Generator().manual_seed(0))
    exact = _drawn("quarter", 3, edge, 4, shift=0.2)
    angle = torch.tensor(1e-9, dtype=torch.float64)
    hair = torch.eye(3, dtype=torch.float64)
    hair[1, 2], hair[2, 1] = -angle, angle
    near = Spatial(hair @ exact.matrix, exact.shift)
    whole = spatial_interior(exact, n, edge)
    torch.testing.assert_close(near.apply(x, edge)[whole], exact.apply(x, edge)[whole], atol=1e-4, rtol=0)
    assert torch.equal(near.inside((n, n, n), edge), exact.inside((n, n, n), edge))
    if (n - edge) % 2 == 0:
        labels = torch.randint(5, (3, n, n, n), generator=torch.Generator().manual_seed(1))
        assert torch.equal(near.apply_labels(labels, edge, fill=-1), exact.apply_labels(labels, edge, fill=-1))


def spatial_interior(spatial: Spatial, n: int, edge: int) -> torch.Tensor:
    return spatial.inside((n, n, n), edge)[:, None].expand(-1, 2, -1, -1, -1)


@pytest.mark.parametrize("kind", ["any", "beam", "quarter"])
@pytest.mark.parametrize("edge", [15, 16])
def test_volume_and_labels_move_alike_and_to_where_the_matrix_says(kind: Kind, edge: int) -> None:
    augment = AugmentSettings(rotation=kind, shift=0.1)
    n = cut_edge(edge, augment)
    spatial = Spatial.draw(8, augment, edge, torch.Generator().manual_seed(3))
    centre = torch.tensor([2.0, -3.0, 1.5], dtype=torch.float64)
    axes = torch.meshgrid(*3 * [torch.arange(n) - (n - 1) / 2], indexing="ij")
    distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) ** 0.5
    assert isinstance(distance, torch.Tensor)
    volume = (3 - distance).float().expand(8, 1, n, n, n)
    moved = spatial.apply(volume, edge)[:, 0]
    labels = spatial.apply_labels((distance <= 3).long().expand(8, n, n, n), edge)
    # within an interpolation's error of the ball's surface both may differ, and nowhere else
    assert bool((labels[moved > 0.9] == 1).all())
    assert bool((labels[moved < -0.9] == 0).all())
    where = torch.stack(torch.meshgrid(*3 * [torch.arange(edge) - (edge - 1) / 2], indexing="ij"), dim=-1).double()
    for b in range(8):
        found = where[labels[b] == 1].mean(dim=0)
        expected = spatial.matrix[b] @ centre + spatial.shift[b]
        assert (found - expected).norm() < 0.35


@pytest.mark.parametrize("kind", ["any", "quarter", "beam", "none"])
@pytest.mark.parametrize("edge", [9, 12])
def test_the_cut_cube_fills_every_window(kind: Kind, edge: int) -> None:
    augment = AugmentSettings(rotation=kind)
    n = cut_edge(edge, augment)
    assert (n - edge) % 2 == 0
    assert bool(_drawn(kind, 200, edge, 5).inside((n, n, n), edge).all())


def test_shapes_types_and_odd_inputs() -> None:
    x = torch.randn(2, 1, 5, 8, 6).bfloat16()
    spatial = _drawn("any", 2, 5, 0)
    assert spatial.apply(x).shape == x.shape
    assert spatial.apply(x, 4).shape == (2, 1, 4, 4, 4)
    assert spatial.apply(x).dtype == torch.bfloat16
    assert torch.equal(Spatial.identity(2).apply(x), x)
    far = Spatial(Spatial.identity(2).matrix, torch.full((2, 3), 50.0, dtype=torch.float64))
    assert bool((far.apply(x, fill=7) == 7).all())
    assert not far.inside((5, 8, 6)).any()
    assert Spatial.identity(0).apply(torch.zeros(0, 1, 4, 4, 4), 2).shape == (0, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="expected shape"):
        spatial.apply(x[:1])


def test_autocast_does_not_round_the_coordinates() -> None:
    x = torch.randn(2, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    spatial = _drawn("any", 2, 40, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spatial.apply(x)
    assert torch.equal(inside, spatial.apply(x))
