"""Tomograms are read whole and checked; what cannot be used is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from copick_cryosam.errors import DataError, NotFoundError
from copick_cryosam.io.job import TomogramUri
from copick_cryosam.io.project import open_project
from copick_cryosam.io.volume import TomogramVolume
from copick_cryosam.types import Grid

WBP = TomogramUri("wbp", 10.0)
STORE = "ExperimentRuns/TS_001/VoxelSpacing10.000/wbp.zarr"


def chunked(folder: Path, data: Any, chunks: tuple[int, int, int], **given: Any) -> TomogramVolume:
    array = zarr.open(str(folder / "a.zarr"), mode="w", shape=data.shape, chunks=chunks, dtype=data.dtype, **given)
    array[:] = data
    return TomogramVolume(zarr.open(str(folder / "a.zarr"), mode="r"), 10.0, "run TS_001, tomogram wbp@10.0")


def test_reads_what_copick_wrote(project_on_disk: Any) -> None:
    data = project_on_disk.add_tomogram("TS_001")
    volume = open_project(project_on_disk.config).tomogram("TS_001", WBP)
    assert volume.shape == (20, 33, 47)
    assert volume.grid == Grid((20, 33, 47), 10.0)
    whole = volume.read()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, data)
    np.testing.assert_array_equal(volume[3:9, -4:, ::2], data[3:9, -4:, ::2])


def test_coarser_level(project_on_disk: Any) -> None:
    data = np.random.default_rng(1).normal(size=(40, 34, 48)).astype(np.float32)
    run = project_on_disk.root().new_run("TS_001")
    run.new_voxel_spacing(10.0).new_tomogram("wbp").from_numpy(data, levels=2)
    project = open_project(project_on_disk.config)
    coarse = project.tomogram("TS_001", WBP, level=1)
    assert coarse.grid == Grid((20, 17, 24), 20.0)
    np.testing.assert_allclose(coarse.read()[0, 0, 0], data[:2, :2, :2].mean(), rtol=1e-5)
    with pytest.raises(NotFoundError, match="level 2"):
        project.tomogram("TS_001", WBP, level=2)


@pytest.mark.parametrize(("depth", "chunk"), [(20, 256), (20, 7), (20, 5), (20, 1)])
def test_slabs_follow_the_chunks_and_tile_the_volume(tmp_path: Path, depth: int, chunk: int) -> None:
    data = np.arange(depth * 17 * 18, dtype=np.int16).reshape(depth, 17, 18)
    volume = chunked(tmp_path, data, (chunk, 17, 18))
    slabs = list(volume.slabs())
    assert [z for slab in slabs for z in range(slab.start, slab.stop)] == list(range(depth))
    assert all(slab.start % chunk == 0 for slab in slabs)
    seen: list[tuple[int, int]] = []
    np.testing.assert_array_equal(volume.read(lambda done, total: seen.append((done, total))), data)
    assert seen == [(slab.stop, depth) for slab in slabs]


def test_nan_and_infinity_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(20, 33, 47)).astype(np.float32)
    data[9, 30, 2] = np.nan
    data[12, 0, 0] = -np.inf
    data[19, 32, 46] = np.inf
    with pytest.raises(DataError, match=r"found 3 NaN or infinite voxels, the first at \(9, 30, 2\)"):
        chunked(tmp_path, data, (6, 33, 47)).read()


@pytest.mark.parametrize("shape", [(15, 33, 47), (20, 4, 47), (20, 33, 1)])
def test_tiny_volume_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="at least 16 voxels"):
        chunked(tmp_path, np.random.default_rng(0).normal(size=shape).astype(np.float32), shape).read()


def test_smallest_volume_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(chunked(tmp_path, data, (16, 16, 16)).read(), data)


def test_constant_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="value 3 in every voxel"):
        chunked(tmp_path, np.full((20, 33, 47), 3, dtype=np.float32), (8, 33, 47)).read()


def test_channel_axis_is_refused(tmp_path: Path) -> None:
    array = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=(1, 20, 20, 20), dtype="f4")
    with pytest.raises(DataError, match="three axes"):
        TomogramVolume(array, 10.0, "tomogram")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "denied"])
def test_damaged_chunk_is_named(project_on_disk: Any, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    project_on_disk.add_tomogram("TS_001")
    chunk = project_on_disk.overlay / STORE / "0/0/0/0"
    whole = chunk.read_bytes()
    if damage == "denied":
        # A read that fails for any other reason than a missing file must not pass for zeros.
        from fsspec.implementations.local import LocalFileSystem

        real = LocalFileSystem.cat_file

        def fail(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            if path.endswith("0/0/0/0"):
                raise OSError("connection lost")
            return real(self, path, *args, **kwargs)

        monkeypatch.setattr(LocalFileSystem, "cat_file", fail)
    else:
        chunk.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"garbage" * 99, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"run TS_001, tomogram wbp@10\.0: .* z = 0 to 19"):
        open_project(project_on_disk.config).tomogram("TS_001", WBP).read()


@pytest.mark.parametrize("codec", ["Zlib", "Zstd", "LZ4", "GZip", "BZ2", "LZMA", None])
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damage_is_told_by_every_codec(tmp_path: Path, codec: str | None, damage: str) -> None:
    import numcodecs

    data = np.random.default_rng(0).normal(size=(20, 18, 17)).astype(np.float32)
    compressor = None if codec is None else getattr(numcodecs, codec)()
    volume = chunked(tmp_path, data, (10, 18, 17), compressor=compressor)
    chunk = tmp_path / "a.zarr/1.0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"garbage" * 40)
    with pytest.raises(DataError, match="z = 10 to 19"):
        volume.read()


def test_missing_chunk_is_background(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(20, 18, 17)).astype(np.float32)
    volume = chunked(tmp_path, data, (10, 18, 17))
    (tmp_path / "a.zarr/1.0.0").unlink()
    whole = volume.read()
    np.testing.assert_array_equal(whole[:10], data[:10])
    assert not whole[10:].any()


@pytest.mark.parametrize("damage", ["no group", "broken group", "broken array"])
def test_damaged_metadata_is_told(project_on_disk: Any, damage: str) -> None:
    project_on_disk.add_tomogram("TS_001")
    store = project_on_disk.overlay / STORE
    if damage == "no group":
        (store / ".zgroup").unlink()
    else:
        (store / {"broken group": ".zgroup", "broken array": "0/.zarray"}[damage]).write_text("{", encoding="utf-8")
    before = project_on_disk.files()
    with pytest.raises(DataError, match="metadata"):
        open_project(project_on_disk.config).tomogram("TS_001", WBP)
    assert project_on_disk.files() == before
