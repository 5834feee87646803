"""Tomograms as lazy arrays: an OME-Zarr level read in slabs, and checked when it is read whole."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import DataError, NotFoundError
from copick_cryosam.io.decoding import guard
from copick_cryosam.io.storage import reason, storage_errors
from copick_cryosam.types import Grid, Slices3

__all__ = ["SMALLEST_SIDE", "TomogramVolume", "open_tomogram", "read_mask"]

SMALLEST_SIDE = 16
"""Voxels; a tomogram with a shorter side holds no particle with its surroundings."""

_DECODING = (RuntimeError, ValueError, EOFError, zlib.error, lzma.LZMAError)
"""What the codecs of numcodecs raise on truncated or foreign bytes; which one depends on the codec."""


class TomogramVolume:
    """One resolution level of a stored tomogram; nothing is read before it is asked for.

    It satisfies `copick_cryosam.types.Volume`. A chunk that is missing in the store is background (the
    fill value), as OME-Zarr has it.

    Parameters
    ----------
    array : zarr array, shape (Z, Y, X), any real type
    voxel_spacing : Å of this level
    name : what errors call it: the run and the tomogram
    """

    def __init__(self, array: Any, voxel_spacing: float, name: str) -> None:
        if len(array.shape) != 3:
            raise DataError(
                f"{name}: expected three axes (z, y, x), found shape {tuple(array.shape)}",
                hint="Give a tomogram without channel or time axis",
            )
        z, y, x = (int(side) for side in array.shape)
        self.grid = Grid((z, y, x), voxel_spacing)
        self.name = name
        self._array = array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y and x."""
        return self.grid.shape_zyx

    def __getitem__(self, region: Slices3) -> NDArray[np.float32]:
        """Read a box, shape as sliced, axes z, y, x.

        Raises
        ------
        DataError
            A chunk cannot be fetched or decoded.
        """
        try:
            box = np.asarray(self._array[region])
        except storage_errors(*_DECODING) as error:
            z = region[0].indices(self.shape[0])
            raise DataError(
                f"{self.name}: expected readable chunks in planes z = {z[0]} to {z[1] - 1}, found: {reason(error)}",
                hint="Copy or reconstruct the tomogram again, or leave this run out with -r",
            ) from None
        return box.astype(np.float32, copy=False)

    def slabs(self) -> Iterator[slice]:
        """Ranges of z that follow the chunks, so that no chunk is decoded twice; they tile the volume once."""
        depth, chunk = self.shape[0], int(self._array.chunks[0])
        for start in range(0, depth, chunk):
            yield slice(start, min(start + chunk, depth))

    def read(self, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """The whole volume, shape (Z, Y, X), read slab by slab.

        Parameters
        ----------
        progress : called after each slab with the planes read so far and all planes

        Raises
        ------
        DataError
            A side shorter than `SMALLEST_SIDE`, a chunk that cannot be read, NaN or infinite values, or the
            same value everywhere.
        """
        if min(self.shape) < SMALLEST_SIDE:
            raise DataError(
                f"{self.name}: expected at least {SMALLEST_SIDE} voxels along each axis, found {self.shape} (z, y, x)",
                hint="Give the full tomogram at a finer voxel spacing",
            )
        whole = np.empty(self.shape, dtype=np.float32)
        everywhere = slice(None)
        not_finite, first, lowest, highest = 0, (0, 0, 0), np.inf, -np.inf
        for slab in self.slabs():
            planes = self[slab, everywhere, everywhere]
            whole[slab] = planes
            low, high = float(planes.min()), float(planes.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                bad = ~np.isfinite(planes)
                if not not_finite:
                    z, y, x = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
                    first = (z + slab.start, y, x)
                not_finite += int(np.count_nonzero(bad))
            lowest, highest = min(lowest, low), max(highest, high)
            if progress is not None:
                progress(slab.stop, self.shape[0])
        if not_finite:
            raise DataError(
                f"{self.name}: expected finite values, found {not_finite} NaN or infinite voxels, the first at "
                f"{first} (z, y, x)",
                hint="Reconstruct the tomogram again, or leave this run out with -r",
            )
        if lowest == highest:
            raise DataError(
                f"{self.name}: expected contrast, found the value {lowest:g} in every voxel",
                hint="Reconstruct the tomogram again, or leave this run out with -r",
            )
        return whole


def open_tomogram(tomogram: Any, name: str, level: int = 0) -> TomogramVolume:
    """A lazy view of one level of a copick tomogram; level n has 2^n times the voxel spacing.

    Raises
    ------
    NotFoundError
        The store has no such level.
    DataError
        The store's metadata cannot be read.
    """
    array = _open_array(tomogram, name, str(level))
    return TomogramVolume(array, float(tomogram.voxel_spacing.voxel_size) * 2**level, name)


def read_mask(segmentation: Any, grid: Grid, name: str) -> NDArray[np.bool_]:
    """A copick segmentation as a mask, True where it is not 0; shape `grid.shape_zyx`.

    Raises
    ------
    DataError
        It cannot be read or lies on another grid than the tomogram.
    """
    array = _open_array(segmentation, name, "0")
    if tuple(array.shape) != grid.shape_zyx:
        raise DataError(
            f"{name}: expected the tomogram's shape {grid.shape_zyx} (z, y, x), found {tuple(array.shape)}",
            hint="Give a segmentation made on this tomogram",
        )
    mask = np.zeros(grid.shape_zyx, dtype=np.bool_)
    view = TomogramVolume(array, grid.voxel_spacing, name)
    for slab in view.slabs():
        mask[slab] = view[slab, slice(None), slice(None)] != 0
    return mask


def _open_array(stored: Any, name: str, level: str) -> Any:
    import zarr
    from zarr.errors import MetadataError

    try:
        store = stored.zarr()
        # zarr's file store takes every failed read (a lost connection, say) for a missing chunk, which
        # would read as zeros. fsspec already says KeyError for what is really missing.
        if hasattr(store, "exceptions"):
            store.exceptions = (KeyError,)
        # Opened for reading only: zarr would otherwise write group metadata into an empty store.
        group = zarr.open(store, mode="r")
        return guard(group[level])
    except KeyError:
        raise NotFoundError(
            f"{name}: expected resolution level {level}, found no such level", hint="Write the data again with copick"
        ) from None
    except storage_errors(ValueError, MetadataError) as error:
        raise DataError(
            f"{name}: expected readable OME-Zarr metadata, found: {reason(error)}",
            hint="Copy or write the data again, or leave this run out with -r",
        ) from None
