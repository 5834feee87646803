"""SAM 2 from folders and the cache of Hugging Face, and everything that is refused, without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from copick_cryosam.errors import DataError, InputError, NotFoundError
from copick_cryosam.foundation.catalogue import SAM2S, find_sam2
from copick_cryosam.foundation.sam2_model import DEFAULT, load_sam2, sam2_name

AGAIN = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No network, no folders of checkpoints, an empty cache."""
    from huggingface_hub import constants

    monkeypatch.delenv("CRYOSAM_CHECKPOINTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def saved(random_sam2, tmp_path_factory) -> dict[str, Path]:
    """Folders as transformers saves a model for pictures, and one for videos, as the published ones are."""
    import transformers

    folder = tmp_path_factory.mktemp("sam2")
    random_sam2.random_sam2().save_pretrained(folder / "pictures")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        video = transformers.Sam2VideoModel(random_sam2.tiny_config(video=True))
        random_sam2.enliven(video)
    video.save_pretrained(folder / "videos")
    return {kind: folder / kind for kind in ("pictures", "videos")}


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """One that a test may spoil."""
    return shutil.copytree(saved["pictures"], tmp_path / "mine")


@pytest.mark.parametrize("kind", ["pictures", "videos"])
def test_a_folder_is_loaded(kind, saved, capfd):
    loaded = load_sam2(str(saved[kind]))
    assert type(loaded.model).__name__ == "Sam2Model"
    assert loaded.name == kind
    assert loaded.signature.startswith(f"{kind}-")
    assert len(loaded.signature) == len(kind) + 13
    assert not loaded.model.training
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    weights = load_file(saved[kind] / "model.safetensors")
    state = loaded.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())
    assert capfd.readouterr().err == ""


def test_positions_that_are_saved_once_are_used_twice(folder):
    weights = load_file(folder / "model.safetensors")
    kept = weights.pop(AGAIN)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_sam2(str(folder)).model.get_buffer(AGAIN), kept)


def test_incomplete_weights_are_refused_instead_of_filled_with_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"found none for mask_decoder\.iou_token\.weight"):
        load_sam2(str(folder))


def test_other_models_are_refused(tiny_transformers, folder):
    with pytest.raises(DataError, match=r"expected a model of type sam2 \(SAM 2\), sam2_video .*, found dinov2"):
        load_sam2(str(tiny_transformers["dinov2"]))
    config = json.loads((folder / "config.json").read_text())
    config["prompt_encoder_config"]["patch_size"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="expected a feature for 16 pixels and 3 masks for a prompt, found 8 and 3"):
        load_sam2(str(folder))


def test_pickles_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "sam2.1_hiera_tiny.pt")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"found only pickled weights \(sam2\.1_hiera_tiny\.pt\)") as caught:
        load_sam2(str(folder))
    assert "Sam2Model.from_pretrained" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"expected a folder .*found a file"):
        load_sam2(str(folder / "sam2.1_hiera_tiny.pt"))


def test_short_names_are_found_in_folders_and_in_the_cache(saved, tmp_path, monkeypatch):
    assert DEFAULT in SAM2S
    entry = SAM2S["sam2.1-tiny"]
    snapshot = tmp_path / "hub" / "models--facebook--sam2.1-hiera-tiny" / "snapshots" / entry.revision
    shutil.copytree(saved["videos"], snapshot)
    for name in ("sam2.1-tiny", entry.hub_id, f"sam2.1-tiny@{entry.revision}"):
        assert load_sam2(name).signature.startswith("sam2.1-tiny-")
    place = tmp_path / "checkpoints" / "sam2.1-hiera-small"
    shutil.copytree(saved["videos"], place)
    monkeypatch.setenv("CRYOSAM_CHECKPOINTS", str(place.parent))
    assert find_sam2("sam2.1-small") == place
    assert load_sam2("sam2.1-small").name == "sam2.1-small"


def test_what_is_not_here_is_told_with_what_to_do(tmp_path):
    entry = SAM2S[DEFAULT]
    with pytest.raises(NotFoundError) as caught:
        load_sam2()
    for part in (f"segmenter.checkpoint {DEFAULT}", entry.hub_id, entry.revision[:12]):
        assert part in caught.value.message
    assert entry.url in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="expected the folder"):
        load_sam2(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"segmenter\.checkpoint: expected the commit of somebody/model") as asked:
        load_sam2("somebody/model")
    assert "Write somebody/model@COMMIT with a commit of" in str(asked.value.hint)
    with pytest.raises(NotFoundError, match="somebody/model at 0123456789ab"):
        load_sam2("somebody/model@0123456789abcdef")


def test_a_folder_may_have_the_sign_of_a_commit_in_its_name(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert sam2_name(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)
    assert sam2_name("somebody/model@0123") == ("somebody/model", "0123")
    assert sam2_name(None) == (DEFAULT, None)
