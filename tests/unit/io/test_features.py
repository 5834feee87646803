"""Embeddings come back bit for bit, or not at all: what does not match, is half written or damaged is refused."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copick_cryosam.contrast import standardise
from copick_cryosam.errors import DataError, InputError, OutputError
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.io import features as stored
from copick_cryosam.io.features import Kept, KeptEmbeddings, Origin, check_encoder, digest
from copick_cryosam.io.job import TomogramUri
from copick_cryosam.io.project import open_project

CPU = torch.device("cpu")
URI = TomogramUri("wbp", 10.0)
ORIGIN = Origin(
    encoder="embednet",
    signature="embednet-0123",
    polarity="dark",
    voxel_spacing=10.0,
    shape_zyx=(20, 33, 47),
    sha256=digest(np.zeros((2, 3, 4), dtype=np.float32)),
)


def features(shape: tuple[int, int, int] = (10, 17, 24), channels: int = 3, kind: torch.dtype = torch.float16) -> Any:
    """Noise on a grid with a stride that has no end in decimals, infinities and a negative zero among it."""
    rng = np.random.default_rng(3)
    values = torch.from_numpy(rng.normal(size=(channels, *shape))).to(kind)
    values[0, 0, 0, 0], values[-1, -1, -1, -1] = float("inf"), -0.0
    foreground, centre = rng.uniform(size=(2, *shape)).astype(np.float32)
    grid = CellGrid(shape, (20 / shape[0], 2 / 3, 47 / 24), ORIGIN.shape_zyx)
    return DenseFeatures(values=values, grid=grid, foreground=foreground, centre=centre)


def same(one: Any, other: Any) -> bool:
    maps = all(
        (getattr(one, name) is None and getattr(other, name) is None)
        or np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("foreground", "centre")
    )
    whole = one.values.dtype == other.values.dtype and one.values.numpy().tobytes() == other.values.numpy().tobytes()
    return maps and whole and one.grid == other.grid


def kept_in(disk: Any, run: str = "TS_001") -> KeptEmbeddings:
    return KeptEmbeddings(open_project(disk.config), run, URI, "embednet")


def store_of(disk: Any) -> Path:
    return Path(disk.overlay) / "ExperimentRuns/TS_001/VoxelSpacing10.000/wbp_cryosam-embednet_features.zarr"


@pytest.fixture
def disk(split_project: Any) -> Any:
    """A tomogram in the read-only part."""
    split_project.add_tomogram("TS_001", root=split_project.static_root())
    return split_project


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    channels=st.integers(1, 4),
    kind=st.sampled_from([torch.float16, torch.float32]),
    chunk=st.integers(1, 400),
)
def test_round_trip_is_exact(disk: Any, shape: Any, channels: int, kind: torch.dtype, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_CHUNK", chunk)
        given = features(shape, channels, kind)
        kept_in(disk).save(ORIGIN, given)
        told: list[tuple[int, int]] = []
        assert same(kept_in(disk).load(ORIGIN, CPU, lambda *step: told.append(step)), given)
        assert told[-1] == (shape[0], shape[0])
    bare = replace(given, foreground=None, centre=None)
    kept_in(disk).save(ORIGIN, bare)
    assert same(kept_in(disk).load(ORIGIN, CPU), bare)


def test_any_tool_can_read_them(disk: Any) -> None:
    kept_in(disk).save(ORIGIN, features())
    place = disk.root().get_run("TS_001").get_voxel_spacing(10.0)
    (tomogram,) = place.get_tomograms("wbp")
    (found,) = tomogram.features
    assert found.feature_type == "cryosam-embednet"
    np.testing.assert_array_equal(found.numpy(), features().values.numpy())
    # The tomogram is still one: the overlay holds features and no second tomogram.
    assert open_project(disk.config).tomogram("TS_001", URI).shape == (20, 33, 47)

    import zarr

    attributes = zarr.open(str(store_of(disk)), mode="r").attrs
    scale, shift = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    last = np.array([10, 17, 24]) - 1
    angstrom = last * scale["scale"][1:] + shift["translation"][1:]
    np.testing.assert_allclose(angstrom, features().grid.to_voxels(last[None]).zyx[0] * 10.0)
    assert attributes["cryosam"]["origin"]["signature"] == "embednet-0123"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("signature", "embednet-4567", r"other encoder weights \(embednet-0123, now embednet-4567\)"),
        ("polarity", "light", r"other polarity \(dark, now light\)"),
        ("shape_zyx", (20, 33, 48), "other tomogram shape"),
        ("voxel_spacing", 10.5, r"other voxel spacing \(10.0, now 10.5\)"),
        ("sha256", digest(np.ones((2, 3, 4), dtype=np.float32)), "other tomogram data"),
        ("encoder", "fake", "other encoder"),
    ],
)
def test_what_does_not_match_is_refused(disk: Any, field: str, value: Any, words: str) -> None:
    kept_in(disk).save(ORIGIN, features())
    changed = replace(ORIGIN, **{field: value})
    assert kept_in(disk).compare(changed)[0] is Kept.DIFFERENT
    with pytest.raises(DataError, match=words):
        kept_in(disk).load(changed, CPU)

    others = features((4, 5, 6))
    others = replace(others, grid=replace(others.grid, extent=changed.shape_zyx))
    kept_in(disk).save(changed, others)
    assert same(kept_in(disk).load(changed, CPU), others)
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.DIFFERENT


def test_another_format_is_refused(disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_in(disk).save(ORIGIN, features())
    monkeypatch.setattr(stored, "FORMAT", stored.FORMAT + 1)
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.DIFFERENT


def test_format_goes_with_what_encoders_are_given() -> None:
    # Embeddings of differently standardised tomograms are not the same. If this fails, raise `FORMAT`, too.
    given = standardise(np.random.default_rng(0).gamma(2, 3, size=(16, 17, 18)).astype(np.float32))
    assert stored.FORMAT == 1
    np.testing.assert_allclose(given[[0, 7, 15], [0, 9, 16], [0, 11, 17]], STANDARDISED, rtol=1e-4)
    assert hashlib.sha256(np.zeros((2, 3, 4), np.float32).tobytes()).hexdigest() == ORIGIN.sha256


STANDARDISED = [-0.137532, 1.233970, 0.697101]


@pytest.mark.parametrize("name", ["0/0/0/0/0", "foreground/0/0/0"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_chunks_are_refused(disk: Any, name: str, damage: str) -> None:
    kept_in(disk).save(ORIGIN, features())
    chunk = store_of(disk) / name
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(content[:-2] if damage == "cut" else content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.USABLE
    with pytest.raises(DataError, match="expected readable embeddings cryosam-embednet"):
        kept_in(disk).load(ORIGIN, CPU)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("step", "left"), [("_write_array", 0), ("_add", 4), ("_add", 11), ("asdict", 0)])
@pytest.mark.parametrize("before", ["nothing", "others", "itself"])
def test_killed_while_writing_leaves_nothing_usable(disk: Any, step: str, left: int, before: str) -> None:
    if before != "nothing":
        kept_in(disk).save(replace(ORIGIN, polarity="light") if before == "others" else ORIGIN, features())
    original, calls = getattr(stored, step), [left]
    with pytest.MonkeyPatch.context() as patch:

        def dying(*args: Any, **given: Any) -> Any:
            if not calls[0]:
                # nothing that would clean up runs any more
                patch.setattr("copick.models.CopickFeatures.delete", dying)
                raise Killed
            calls[0] -= 1
            return original(*args, **given)

        kept = kept_in(disk)
        patch.setattr(stored, "_CHUNK", 1)
        patch.setattr(kept, "check_place", lambda **_: None)
        patch.setattr(stored, step, dying)
        with pytest.raises(Killed):
            kept.save(ORIGIN, features())
    assert store_of(disk).exists()
    usable_again(disk)


def test_killed_while_deleting_leaves_nothing_usable(disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: Any) -> None:
        raise Killed

    kept_in(disk).save(ORIGIN, features())
    with monkeypatch.context() as patch:
        patch.setattr("copick.models.CopickFeatures.delete", dying)
        with pytest.raises(Killed):
            kept_in(disk).save(ORIGIN, features())
    usable_again(disk)


KILL = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_features import ORIGIN, features as some, kept_in, stored
from types import SimpleNamespace
stored._add = lambda total, part: os.kill(os.getpid(), signal.SIGKILL)
kept_in(SimpleNamespace(config={config!r})).save(ORIGIN, some())
"""


def test_killed_process(disk: Any) -> None:
    code = KILL.format(here=str(Path(__file__).parent), config=str(disk.config))
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (store_of(disk) / "0").exists()
    usable_again(disk)


def usable_again(disk: Any) -> None:
    """What is there is refused, and the next call replaces it."""
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.INCOMPLETE
    with pytest.raises(DataError, match="they are incomplete"):
        kept_in(disk).load(ORIGIN, CPU)
    kept_in(disk).save(ORIGIN, features())
    assert same(kept_in(disk).load(ORIGIN, CPU), features())


def test_half_a_signature_is_none(disk: Any) -> None:
    kept_in(disk).save(ORIGIN, features())
    path = store_of(disk) / ".zattrs"
    path.write_bytes(path.read_bytes()[:-20])
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.INCOMPLETE
    kept_in(disk).save(ORIGIN, features())
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.USABLE


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_write_leaves_nothing(disk: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    before, original = disk.files(), stored._write_array

    def failing(group: Any, name: str, values: Any) -> str:
        if name == "centre":
            raise raised
        return original(group, name, values)

    monkeypatch.setattr(stored, "_write_array", failing)
    expected = OutputError if isinstance(raised, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is OutputError else None):
        kept_in(disk).save(ORIGIN, features())
    assert disk.files() == before
    assert kept_in(disk).absent


def test_features_of_others_stay(disk: Any) -> None:
    import zarr

    place = disk.root().get_run("TS_001").get_voxel_spacing(10.0)
    (tomogram,) = place.get_tomograms("wbp")
    zarr.open(tomogram.new_features("cryosam-embednet").zarr(), mode="w")["0"] = np.ones(5)
    before = disk.files()
    assert kept_in(disk).compare(ORIGIN)[0] is Kept.FOREIGN
    with pytest.raises(OutputError, match="CryoSAM did not write"):
        kept_in(disk).save(ORIGIN, features())
    assert disk.files() == before
    kept_in(disk).save(ORIGIN, features(), replace_foreign=True)
    assert same(kept_in(disk).load(ORIGIN, CPU), features())


def test_read_only_embeddings_are_used_and_never_replaced(disk: Any) -> None:
    kept_in(disk).save(ORIGIN, features())
    static = disk.folder / "static/ExperimentRuns/TS_001/VoxelSpacing10.000" / store_of(disk).name
    store_of(disk).rename(static)
    assert same(kept_in(disk).load(ORIGIN, CPU), features())
    with pytest.raises(OutputError, match="read-only part"):
        kept_in(disk).save(replace(ORIGIN, polarity="light"), features())
    assert same(kept_in(disk).load(ORIGIN, CPU), features())


def test_tokens_cannot_be_kept() -> None:
    with pytest.raises(InputError, match="found dinov2-reg-large, whose tokens cannot be kept"):
        check_encoder("dinov2-reg-large")
    check_encoder("embednet")
