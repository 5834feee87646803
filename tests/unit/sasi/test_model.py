"""A trained detector on disk: what is written is what is read, or a line that says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from copick_cryosam.errors import DataError, InputError, NotFoundError, OutputError
from copick_cryosam.sasi import model as on_disk
from copick_cryosam.sasi.model import SasiModel, check_place, load_model, model_paths, read_record, save_model
from copick_cryosam.sasi.networks import load_network
from copick_cryosam.sasi.points import ParticleClass
from copick_cryosam.sasi.settings import SasiSettings

CPU = torch.device("cpu")
CLASSES = (ParticleClass(name="ribosome", radius_vox=6.0), ParticleClass(name="proteasome", radius_vox=1.5))


def a_model(seed: int = 0, **changes) -> SasiModel:
    settings = SasiSettings.model_validate(
        {
            "architecture": "deepfinder",
            "init": "none",
            "labels": {"radius": 1.0},
            "training": {"seed": seed},
            "inference": {"min_size": 0.5},
        }
    )
    fields = {
        "network": load_network(settings, len(CLASSES)),
        "settings": settings,
        "classes": CLASSES,
        "voxel_spacing": 10.0,
        "polarity": "dark",
        "training": {"points": [{"run": "a", "origin": "ribosome:curator/1"}], "curve": [{"step": 50, "f1": None}]},
    }
    return SasiModel(**{**fields, **changes})


def same(one: SasiModel, other: SasiModel) -> bool:
    a, b = one.network.state_dict(), other.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "of.two", a_model())


def rewritten(path: Path, change) -> None:
    """The model with its record changed in the header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["copick-cryosam-sasi"])
    change(record)
    save_file(load_file(path), path, {"copick-cryosam-sasi": json.dumps(record)})


def test_a_model_comes_back_whole(saved):
    assert saved.name == "of.two.safetensors"
    there, back = a_model(), load_model(saved, CPU)
    assert same(there, back)
    assert not back.network.training
    for field in ("settings", "classes", "voxel_spacing", "polarity", "training"):
        assert getattr(back, field) == getattr(there, field)
    assert (back.window, back.label_radius(CLASSES[0]), back.label_radius(CLASSES[1])) == (24, 6.0, 2.0)


def test_the_json_beside_it_is_the_record_and_any_of_the_names_will_do(saved):
    readable = json.loads(saved.with_suffix(".json").read_text())
    assert readable == json.loads(json.dumps(read_record(saved.with_suffix(".json")).model_dump(mode="json")))
    assert readable["classes"][1] == {
        "name": "proteasome",
        "label": 2,
        "radius_voxels": 1.5,
        "radius_angstrom": 15.0,
    }
    assert readable["sha256"] == on_disk.tensor_hash(load_file(saved))
    assert model_paths(saved.parent / "of.two") == model_paths(saved) == model_paths(saved.with_suffix(".json"))


def test_no_file_and_no_folder(tmp_path):
    with pytest.raises(NotFoundError, match="expected a file, found none"):
        load_model(tmp_path / "nothing", CPU)
    with pytest.raises(OutputError, match="expected a place that can be written"):
        save_model(tmp_path / "nowhere" / "model", a_model())
    with pytest.raises(OutputError, match="expected a folder"):
        check_place(tmp_path / "nowhere" / "model")


def test_a_place_is_taken_only_when_asked(saved):
    with pytest.raises(OutputError, match=r"of\.two\.safetensors: expected no file yet"):
        check_place(saved)
    check_place(saved, overwrite=True)
    check_place(saved.with_name("another"))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.99])
def test_truncated(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    for read in (read_record, lambda path: load_model(path, CPU)):
        with pytest.raises(DataError, match="found a damaged or foreign file") as error:
            read(saved)
        assert "\n" not in str(error.value)


def test_foreign_files(saved, tmp_path):
    saved.write_bytes(b"PK\x03\x04 no safetensors at all, but long enough for a header")
    with pytest.raises(DataError, match="damaged or foreign"):
        load_model(saved, CPU)
    save_file({"weight": torch.zeros(3)}, saved)
    with pytest.raises(DataError, match="tensors of another program"):
        load_model(saved, CPU)
    with pytest.raises(DataError, match="expected a detector"):
        load_model(make_folder(tmp_path / "folder.safetensors"), CPU)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format(saved, found):
    rewritten(saved, lambda record: record.update(format=found))
    with pytest.raises(DataError, match=f"expected format 1, found {found!r}"):
        load_model(saved, CPU)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.pop("polarity"), "in its record polarity: field required"),
        (lambda record: record.update(voxel_spacing=-1), r"in its record voxel_spacing: input should be greater"),
        (lambda record: record["settings"].update(colour="red"), r"in its record settings\.colour: extra inputs"),
        (lambda record: record["classes"].clear(), "in its record classes: "),
        (lambda record: record["classes"].pop(), r"tensors of another net than deepfinder \(logits\.bias: \(3,\)"),
        (lambda record: record["settings"].update(architecture="embednet"), "tensors of another net than embednet"),
        (lambda record: record.update(sha256="0" * 64), "tensors that are not those of its record"),
    ],
)
def test_records_that_do_not_fit(saved, change, words):
    rewritten(saved, change)
    with pytest.raises(DataError, match=words) as error:
        load_model(saved, CPU)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_in_the_tensors_is_seen(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    with pytest.raises(DataError, match="not those of its record"):
        load_model(saved, CPU)


def test_an_interrupted_save_leaves_the_old_model_and_nothing_else(saved, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = sorted(saved.parent.iterdir())
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(saved, a_model(seed=1))
    assert sorted(saved.parent.iterdir()) == before
    assert same(load_model(saved, CPU), a_model())


KILLED = """
import os, signal, sys, torch
from copick_cryosam.sasi.model import load_model, save_model

def killed_at(call, model):
    calls = []
    def counted(function):
        def before(*arguments):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return before
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    save_model(sys.argv[1], model)

cpu = torch.device("cpu")
for call in (1, 2, 3, 4):
    model = load_model(sys.argv[1], cpu)
    torch.nn.init.ones_(next(model.network.parameters()))
    child = os.fork()
    if child == 0:
        killed_at(call, model)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    print(bool((next(load_model(sys.argv[1], cpu).network.parameters()) == 1).all()))
"""


def test_a_killed_save_leaves_one_model_whole(saved):
    """Killed before each of the two files is flushed and before each gets its name."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(saved)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "False", "True"]  # the tensors get their name first


def test_classes_have_names_of_their_own_and_fit_into_8_bits():
    with pytest.raises(InputError, match="expected 1 to 255 different names, found 2"):
        a_model(classes=(CLASSES[0], CLASSES[0]))
    with pytest.raises(InputError, match="found 256"):
        a_model(classes=tuple(ParticleClass(name=str(i), radius_vox=3.0) for i in range(256)))
    with pytest.raises(InputError, match="found 0"):
        a_model(classes=())
    with pytest.raises(InputError, match="positive number of Å, found nan"):
        a_model(voxel_spacing=float("nan"))


def test_a_record_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_model(tmp_path / "model", dataclasses.replace(a_model(), training={"curve": [np.nan]}))
    assert not list(tmp_path.iterdir())
