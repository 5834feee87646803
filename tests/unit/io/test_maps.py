"""Averages on disk: readable, complete or absent, never replaced unasked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from copick_cryosam.averaging import Average
from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.io.maps import write_maps


def an_average(value: float = 0.0, single: bool = False) -> Average:
    rng = np.random.default_rng(0)
    return Average(
        density=rng.normal(size=(12, 12, 12)).astype(np.float32) + np.float32(value),
        halves=rng.normal(size=(2, 12, 12, 12)).astype(np.float32),
        fsc=np.full(6, np.nan) if single else np.linspace(1, 0, 6),
        frequencies=np.arange(1, 7) / 120,
        resolution_0143=float("nan") if single else 24.0,
        resolution_05=float("inf") if single else 40.0,
        count=1 if single else 9,
        voxel_spacing=10.0,
    )


def test_maps_come_back_with_their_voxel_spacing(tmp_path) -> None:
    made = an_average()
    paths = write_maps(made, tmp_path / "ribosome.mrc")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    for path, density in zip(paths, (made.density, *made.halves), strict=False):
        with mrcfile.open(path) as file:
            np.testing.assert_array_equal(file.data, density)
            assert float(file.voxel_size.x) == pytest.approx(10.0)
        assert mrcfile.validate(path)
    content = json.loads(paths[3].read_text())
    assert content["resolution_0143"] == 24.0
    assert content["fsc"] == pytest.approx(list(made.fsc))
    single = write_maps(an_average(single=True), tmp_path / "one.mrc")
    assert json.loads(single[3].read_text())["resolution_05"] is None


def test_nothing_is_replaced_unasked(tmp_path) -> None:
    write_maps(an_average(), tmp_path / "a.mrc")
    before = (tmp_path / "a.mrc").read_bytes()
    with pytest.raises(OutputError, match=r"found .*a_half1"):
        write_maps(an_average(5), tmp_path / "a.mrc")
    assert (tmp_path / "a.mrc").read_bytes() == before
    write_maps(an_average(5), tmp_path / "a.mrc", overwrite=True)
    assert (tmp_path / "a.mrc").read_bytes() != before


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch) -> None:
    with pytest.raises(OutputError, match="expected the folder"):
        write_maps(an_average(), tmp_path / "none" / "a.mrc")
    with pytest.raises(InputError, match=r"\.mrc"):
        write_maps(an_average(), tmp_path / "a.map")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_maps(an_average(), Path(tmp_path / "a.mrc"))
    assert list(tmp_path.iterdir()) == []
