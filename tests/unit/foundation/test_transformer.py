"""Vision transformers from folders and the cache of Hugging Face, and everything that is refused, without a network."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from copick_cryosam.errors import DataError, InputError, NotFoundError
from copick_cryosam.foundation.catalogue import TRANSFORMERS
from copick_cryosam.foundation.transformer import SUPPORTED, load_transformer


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No network, no folders of checkpoints, an empty cache."""
    from huggingface_hub import constants

    monkeypatch.delenv("CRYOSAM_CHECKPOINTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tiny_transformers, tmp_path):
    """A DINOv2 that a test may spoil."""
    return shutil.copytree(tiny_transformers["dinov2"], tmp_path / "dinov2")


def contents(state):
    return sorted(value.numpy().tobytes() for value in state.values())


@pytest.mark.parametrize(
    ("kind", "patch", "prefix"),
    [("vit", 16, 1), ("dinov2", 14, 1), ("dinov2_with_registers", 14, 5), ("dinov3_vit", 16, 4)],
)
def test_a_folder_is_loaded(kind, patch, prefix, tiny_transformers):
    loaded = load_transformer(str(tiny_transformers[kind]))
    assert kind in SUPPORTED
    assert (loaded.name, loaded.patch, loaded.prefix, loaded.channels) == (kind, patch, prefix, 32)
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not loaded.model.training
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    # transformers gives some of them other names
    weights = load_file(tiny_transformers[kind] / "model.safetensors")
    assert contents(loaded.model.state_dict()) == contents(weights)


def test_the_signature_follows_the_weights(folder):
    first = load_transformer(str(folder)).signature
    assert first.startswith("dinov2-")
    assert len(first.removeprefix("dinov2-")) == 12
    weights = load_file(folder / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert load_transformer(str(folder)).signature != first


def test_half_precision_becomes_single(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({key: value.half() for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert {value.dtype for value in load_transformer(str(folder)).model.parameters()} == {torch.float32}


def test_weights_in_parts(folder):
    weights = load_file(folder / "model.safetensors")
    whole = load_transformer(str(folder)).model.state_dict()
    names = sorted(weights)
    halves = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for file, keys in halves.items():
        save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_transformer(str(folder))
    assert all(torch.equal(value, whole[key]) for key, value in loaded.model.state_dict().items())
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"found model-2\.safetensors missing"):
        load_transformer(str(folder))


def test_a_cached_model_is_used_without_a_network(tiny_transformers, tmp_path):
    entry = TRANSFORMERS["dinov2-small"]
    snapshot = tmp_path / "hub" / "models--facebook--dinov2-small" / "snapshots" / entry.revision
    shutil.copytree(tiny_transformers["dinov2"], snapshot)
    assert load_transformer("dinov2-small").signature.startswith("dinov2-small-")
    assert load_transformer("facebook/dinov2-small", entry.revision).name == "dinov2-small"


def test_offline_says_what_was_looked_for_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYOSAM_CHECKPOINTS", str(tmp_path / "checkpoints"))
    with pytest.raises(NotFoundError) as caught:
        load_transformer("dinov2-reg-large")
    entry = TRANSFORMERS["dinov2-reg-large"]
    for part in ("encoder dinov2-reg-large", entry.hub_id, entry.revision[:12], "checkpoints", "hub"):
        assert part in caught.value.message
    for part in (entry.url, "model.safetensors", "CRYOSAM_CHECKPOINTS", "folder"):
        assert part in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        load_transformer("dinov3-small")
    assert "accepting its licence" in caught.value.hint


def test_hugging_face_names_need_a_commit():
    with pytest.raises(InputError, match=r"encoder\.revision: expected the commit of somebody/model"):
        load_transformer("somebody/model")
    with pytest.raises(NotFoundError, match="somebody/model at 0123456789ab"):
        load_transformer("somebody/model", "0123456789abcdef0123456789abcdef01234567")


def test_pickles_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"expected model\.safetensors, found only pickled weights \(pytorch_model"):
        load_transformer(str(folder))
    published = [entry for entry in TRANSFORMERS.values() if entry.pickled]
    assert published
    for entry in published:
        with pytest.raises(DataError, match=rf"only pickled weights.*{entry.hub_id}"):
            load_transformer(entry.name)


@pytest.mark.parametrize("kind", ["bert", "dinov2_with_registers"])
def test_other_architectures_are_refused(kind, tiny_transformers, folder):
    """One of another kind, and weights that belong to another config than the folder's."""
    shutil.copy(tiny_transformers[kind] / "model.safetensors", folder)
    if kind == "bert":
        shutil.copy(tiny_transformers[kind] / "config.json", folder)
        expected = r"expected a model of type vit \(DINO\), dinov2 .*dinov3_vit \(DINOv3\), found bert"
    else:
        expected = "expected weights"
        weights = load_file(folder / "model.safetensors")
        renamed = {"x." + key: value for key, value in weights.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=expected):
        load_transformer(str(folder))


def test_code_of_a_repository_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="found evil"):
        load_transformer(str(folder))
    config["model_type"] = "dinov2"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_transformer(str(folder)).channels == 32


def test_incomplete_weights_are_refused_instead_of_filled_with_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    needless = {key: value for key, value in weights.items() if not key.endswith("mask_token")}
    save_file(needless, folder / "model.safetensors", {"format": "pt"})
    load_transformer(str(folder))
    dropped = {key: value for key, value in needless.items() if key != "layernorm.weight"}
    save_file(dropped, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"found none for layernorm\.weight"):
        load_transformer(str(folder))


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"expected weights that fit its config\.json"):
        load_transformer(str(folder))


def test_damaged_weights_are_refused(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="Download the folder again"):
        load_transformer(str(folder))


def test_what_is_no_model_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"expected a folder .*found a file"):
        load_transformer(str(folder / "model.safetensors"))
    with pytest.raises(NotFoundError, match="expected the folder"):
        load_transformer(str(tmp_path / "nothing"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"expected model\.safetensors, found none"):
        load_transformer(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="no type in"):
        load_transformer(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"found no config\.json"):
        load_transformer(str(folder))


@pytest.mark.parametrize(("package", "name"), [("transformers", "folder"), ("huggingface_hub", "dinov2-base")])
def test_without_the_extra_it_says_what_to_install(package, name, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotFoundError, match=r'pip install "copick-cryosam\[foundation\]"'):
        load_transformer(str(folder) if name == "folder" else name)


def test_loading_leaves_the_logging_of_transformers_as_it_was(tiny_transformers, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_transformer(str(tiny_transformers["vit"]))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().err == ""
