"""Half-overlapping windows whose average is what the net says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.sasi.stitching import cover, stitch

CPU = torch.device("cpu")


def identity(windows: Tensor) -> Tensor:
    """Two maps: the windows, and three times the windows."""
    return torch.cat([windows, 3 * windows], dim=1)


def stitched(volume: NDArray[np.float32], edge: int, batch: int = 7, *, net=identity, centred: bool = True):
    slabs = list(stitch(volume, net, 2, edge, Batches(batch, "windows", "x"), CPU, centred=centred))
    assert [planes.start for planes, _ in slabs[1:]] == [planes.stop for planes, _ in slabs[:-1]]
    assert max(maps.shape[1] for _, maps in slabs) <= edge
    return torch.cat([maps for _, maps in slabs], dim=1).numpy()


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    half=st.integers(1, 6),
    batch=st.integers(1, 9),
    centred=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_windows_of_an_identity_net_make_the_volume_again(shape, half, batch, centred, seed):
    volume = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    maps = stitched(volume, 2 * half, batch, centred=centred)
    assert maps.shape == (2, *shape)
    np.testing.assert_allclose(maps[0], volume, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(maps[1], 3 * volume, rtol=1e-6, atol=3e-6)


def test_the_maps_do_not_depend_on_the_batch():
    volume = np.random.default_rng(0).normal(size=(19, 30, 41)).astype(np.float32)

    def uneven(windows: Tensor) -> Tensor:  # every voxel gets something that depends on its place in the window
        ramp = torch.linspace(0, 1, windows[0].numel()).reshape(windows.shape[1:])
        return torch.cat([windows * ramp, windows.flip(2)], dim=1)

    one = stitched(volume, 8, 1, net=uneven)
    assert np.array_equal(one, stitched(volume, 8, 5, net=uneven))
    assert np.array_equal(one, stitched(volume, 8, 1000, net=uneven))


def test_the_middle_of_a_window_counts_more_than_its_border():
    edge = 8

    def bordered(windows: Tensor) -> Tensor:  # wrong on the outermost voxels of every window
        maps = torch.zeros_like(windows)
        maps[:, :, 1:-1, 1:-1, 1:-1] = 1
        return torch.cat([maps, maps], dim=1)

    volume = np.zeros((21, 22, 23), dtype=np.float32)
    centred, flat = (stitched(volume, edge, net=bordered, centred=each)[0] for each in (True, False))
    # the border's weight is 1/8 of the middle's along each axis, and every voxel lies well inside some window
    assert centred.min() >= (7 / 8) ** 3 - 1e-6
    assert flat.min() == pytest.approx(1 / 8)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 60), half=st.integers(1, 12))
def test_every_voxel_lies_a_quarter_of_the_edge_inside_some_window(size, half):
    edge = 2 * half
    axis = cover(size, edge, centred=True)
    places = np.arange(axis.own.start, axis.own.stop)[:, None] + 0.5
    starts = np.array(axis.starts)
    inside = np.minimum(places - starts, starts + edge - places).max(axis=1)
    assert inside.min() >= edge / 4
    assert np.array_equal(axis.source[axis.own], np.arange(size))
    assert len(axis.source) == len(axis.total) == starts[-1] + edge


def test_windows_need_an_even_edge():
    with pytest.raises(ValueError, match="even number of voxels, found 7"):
        cover(30, 7, centred=True)


def test_planes_are_read_layer_by_layer_and_progress_counts_the_windows():
    class Lazy:
        """Refuses to hand out more planes than a window has."""

        shape = (50, 9, 10)

        def __getitem__(self, region):
            z = region[0]
            assert 0 <= z.start < z.stop <= 50
            assert z.stop - z.start <= 8
            return np.full((z.stop - z.start, 9, 10), 2, dtype=np.float32)

    told = []
    slabs = stitch(Lazy(), identity, 2, 8, Batches(4, "windows", "x"), CPU, progress=lambda *steps: told.append(steps))
    assert all(bool((maps[0] == 2).all()) for _, maps in slabs)
    assert told[-1] == ("windows", 13 * 3 * 3, 13 * 3 * 3)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
