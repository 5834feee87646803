"""Checkpoints: found in folders, read without running anything, recognised by their tensors, built without copies.

Tensors of zeros are one number repeated (strides 0), so a whole SAM takes a few hundred kilobytes here.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from copick_cryosam.errors import CryosamError, DataError, InputError, NotFoundError
from copick_cryosam.foundation import catalogue
from copick_cryosam.foundation.catalogue import SAMS, TRANSFORMERS, VARIABLE
from copick_cryosam.foundation.checkpoints import (
    find_sam,
    find_transformer,
    identify_sam,
    load_sam,
    read_state,
    recognise_sam,
)
from copick_cryosam.foundation.sam_modules import official

SMALL = {"a": torch.arange(10000.0).reshape(100, 100), "b": torch.ones(50)}


def thin_state(kind: str) -> dict[str, Tensor]:
    """The tensors of a SAM by name and shape, all zeros, without their memory."""
    with torch.device("meta"):
        sam = official("build_sam").sam_model_registry[kind]()
    return {key: torch.zeros(()).expand(value.shape) for key, value in sam.state_dict().items()}


def thin_file(path: Path, kind: str) -> Path:
    torch.save(thin_state(kind), path)
    return path


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="session")
def random_vit_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ViT-B with random weights as the official modules save it, 375 MB."""
    torch.manual_seed(0)
    with torch.device("meta"):
        sam = official("build_sam").sam_model_registry["vit_b"]()
    state = {key: torch.empty(value.shape).uniform_(-0.05, 0.05) for key, value in sam.state_dict().items()}
    path = tmp_path_factory.mktemp("sam") / "random_vit_b.pth"
    torch.save(state, path)
    yield path
    path.unlink()


# The catalogue


def test_catalogue_is_consistent() -> None:
    for kind, entry in SAMS.items():
        state = thin_state(kind)
        assert entry.parameters == sum(value.numel() for value in state.values())
        # A checkpoint is its float32 tensors and up to a quarter of a megabyte of names
        assert 0 < entry.size - 4 * entry.parameters < 2.5e5
        assert len(entry.sha256) == 64
        assert entry.url.endswith(entry.file)
    for name, transformer in TRANSFORMERS.items():
        assert transformer.name == name
        assert len(transformer.revision) == 40
        # 12 weights of embedding_dim² per layer, more or less: of a swiglu layer a few more
        assert 0.8 < transformer.parameters / (12 * transformer.embedding_dim**2 * transformer.layers) < 1.2
        assert transformer.gated == name.startswith("dinov3")
    assert len({entry.revision for entry in TRANSFORMERS.values()}) == len(TRANSFORMERS)


# Finding


def test_the_largest_sam_is_found_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path / "missing"), str(first), "", str(second)]))
    base, large = first / SAMS["vit_b"].file, second / SAMS["vit_l"].file
    base.touch()
    assert find_sam() == find_sam("vit_b") == base
    large.touch()
    assert find_sam() == large
    assert find_sam("vit_b") == base
    with pytest.raises(
        NotFoundError, match=r"expected sam_vit_h_4b8939\.pth, found none in .*missing \(no such folder\)"
    ):
        find_sam("vit_h")


def test_a_sam_saved_anew_as_safetensors_is_found_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sam_vit_b_01ec64.safetensors"
    thin_file(path.with_suffix(".pth"), "vit_b").rename(path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_sam() == path
    with pytest.raises(DataError, match="expected whole safetensors"):
        load_sam()


def test_a_missing_sam_names_files_folders_and_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_sam()
    assert all(entry.file in caught.value.message for entry in SAMS.values())
    assert "CRYOSAM_CHECKPOINTS is not set" in caught.value.message
    assert SAMS["vit_h"].url in caught.value.hint
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(NotFoundError) as caught:
        find_sam("vit_l")
    assert str(tmp_path) in caught.value.message
    assert SAMS["vit_l"].url in caught.value.hint
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"expected one of vit_h, vit_l, vit_b, found 'vit_x'"):
        find_sam("vit_x")


@pytest.mark.parametrize("folder", ["dinov2-reg-large", "dinov2-with-registers-large"])
def test_transformer_folders_are_found(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_transformer("dinov2-reg-large") is None
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / folder).mkdir()
    assert find_transformer("dinov2-reg-large") is None
    (tmp_path / folder / "config.json").write_text("{}")
    for name in ("dinov2-reg-large", "facebook/dinov2-with-registers-large"):
        assert find_transformer(name) == tmp_path / folder
    assert find_transformer("dinov2-reg-small") is None


def test_cache_of_hugging_face_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    places: dict[tuple[str, str], str] = {}

    def cached(hub_id: str, file: str, revision: str) -> str | None:
        assert revision == TRANSFORMERS["dino-small"].revision
        return places.get((hub_id, file))

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    entry = TRANSFORMERS["dino-small"]
    places[entry.hub_id, "config.json"] = str(tmp_path / "config.json")
    assert catalogue.cached_transformer(entry) is None
    places[entry.hub_id, entry.weights] = str(tmp_path / entry.weights)
    assert catalogue.cached_transformer(entry) == tmp_path


# Reading


def same(state: dict[str, Tensor]) -> bool:
    return state.keys() == SMALL.keys() and all(torch.equal(state[key], SMALL[key]) for key in SMALL)


def recompressed(path: Path) -> None:
    """A zip file whose tensors are compressed: mapping it would give rubbish."""
    torch.save(SMALL, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in plain.infolist():
            new.writestr(record.filename, plain.read(record))


READABLE: dict[str, Callable[[Path], object]] = {
    "file.pth": lambda path: torch.save(SMALL, path),
    "old.pth": lambda path: torch.save(SMALL, path, _use_new_zipfile_serialization=False),
    "new.safetensors": lambda path: save_file(SMALL, path),
    "nested.pth": lambda path: torch.save({"state_dict": SMALL, "epoch": 3, "arch": "vit"}, path),
    "model.pt": lambda path: torch.save({"model": SMALL}, path),
    "compressed.pth": recompressed,
}


@pytest.mark.parametrize("name", READABLE)
def test_readable(name: str, tmp_path: Path) -> None:
    READABLE[name](tmp_path / name)
    assert same(read_state(tmp_path / name))


class RunsCode:
    """Unpickling it calls `os.system`."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.touched}'",)


@pytest.mark.parametrize("how", ["zip", "old", "pickle", "pickle 2", "alone"])
def test_code_is_not_run(how: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "sam.pth", tmp_path / "touched"
    content = {"weight": torch.zeros(3), "bad": RunsCode(touched)}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps({"bad": RunsCode(touched)}, protocol=2 if how == "pickle 2" else 4))
    else:
        torch.save(content["bad"] if how == "alone" else content, path, _use_new_zipfile_serialization=how != "old")
    # torch never wrote protocol 4, so that file is foreign before it calls anything.
    words = "foreign" if how == "pickle" else r"a pickle that calls \w+\.system; it is refused"
    with pytest.raises(DataError, match=f"{words}.* nothing was run") as caught:
        read_state(path)
    assert not touched.exists()
    assert "\n" not in str(caught.value)
    if how == "zip":
        # The test could fail: read without care, the file does what it says.
        torch.load(path, weights_only=False)
        assert touched.exists()


@pytest.mark.parametrize("name", ["file.pth", "old.pth", "new.safetensors"])
@pytest.mark.parametrize("kept", [1, 2, 4, 8, 30, 100, 300, 1000, 20000, 0.5, 0.99, -30, -1])
def test_truncated(name: str, kept: float, tmp_path: Path) -> None:
    whole = tmp_path / name
    READABLE[name](whole)
    content = whole.read_bytes()
    end = kept if isinstance(kept, int) else int(kept * len(content))
    assert len(content) > abs(end)
    whole.write_bytes(content[:end])
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        read_state(whole)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("record", ["data/0", "data/1"])
def test_truncated_storage(record: str, tmp_path: Path) -> None:
    # The first one, mapped, would go on into the second.
    torch.save(SMALL, tmp_path / "whole.pth")
    path = tmp_path / "short.pth"
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(path, "w") as short:
        for each in whole.infolist():
            content = whole.read(each)
            short.writestr(each.filename, content[:-4] if each.filename.endswith(record) else content)
        short.writestr("whole/padding", bytes(100000))
    with pytest.raises(DataError, match="cut short"):
        read_state(path)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>Not found</html>"), "a web page"),
    "a pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "Git LFS"),
    "noise": (lambda path: path.write_bytes(bytes(range(1, 255)) * 9), "one that begins with"),
    "safetensors": (lambda path: save_file(SMALL, path), "safetensors under another suffix"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "a folder": (lambda path: path.mkdir(), "found a folder"),
    "a zip file": (lambda path: zipfile.ZipFile(path, "w").close(), "torch file"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "found a Tensor"),
    "an empty dictionary": (lambda path: torch.save({}, path), "found the keys|an empty one"),
    "numbers": (lambda path: torch.save({"epoch": 3, "loss": [1.0]}, path), r"epoch \(int\), loss \(list\)"),
    "a mixture": (lambda path: torch.save({**SMALL, "epoch": 3}, path), r"epoch \(int\)"),
    "two models": (lambda path: torch.save({"model": SMALL, "state_dict": SMALL}, path), r"model \(dict\)"),
    "another key": (lambda path: torch.save({"optimizer": SMALL}, path), r"optimizer \(dict\)"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable(case: str, tmp_path: Path) -> None:
    write, words = UNUSABLE[case]
    path = tmp_path / "sam.pth"
    write(path)
    with pytest.raises(DataError, match=words) as caught:
        read_state(path)
    assert str(path) in caught.value.message
    assert "expected" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"expected .*none\.pth, found no such file"):
        read_state(tmp_path / "none.pth")


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    torch.save(SMALL, path)
    with pytest.raises(DataError, match="expected whole safetensors"):
        read_state(path)


# Recognising


@pytest.mark.parametrize("kind", SAMS)
def test_kinds_are_recognised(kind: str) -> None:
    assert recognise_sam(thin_state(kind)) == kind


def changed(change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    state = thin_state("vit_b")
    change(state)
    return state


UNIT = torch.zeros(1)
FOREIGN: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "SAM-HQ": (
        lambda: changed(lambda state: state.update({"mask_decoder.hf_token.weight": UNIT})),
        r"only the tensors of SAM vit_b, found SAM-HQ, with mask_decoder\.hf_token\.weight",
    ),
    "MobileSAM": (lambda: {"image_encoder.patch_embed.seq.0.c.weight": UNIT}, "found MobileSAM"),
    "SAM 2": (lambda: {"image_encoder.trunk.pos_embed": UNIT, "memory_encoder.x": UNIT}, "found SAM 2"),
    "transformers": (lambda: {"vision_encoder.pos_embed": UNIT}, "SAM as transformers saves it"),
    "something else": (lambda: SMALL, r"found no tensor image_encoder\.pos_embed"),
    "a width": (
        lambda: changed(lambda state: state.update({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 384)})),
        r"image_encoder\.pos_embed of shape \(1, 64, 64, 384\)",
    ),
    "a missing tensor": (
        lambda: changed(lambda state: state.pop("image_encoder.blocks.11.mlp.lin2.bias")),
        r"expected the tensor image_encoder\.blocks\.11\.mlp\.lin2\.bias \(768,\) of SAM vit_b, found none",
    ),
    "a layer more": (
        lambda: changed(lambda state: state.update({"image_encoder.blocks.12.mlp.lin2.bias": UNIT})),
        r"found image_encoder\.blocks\.12\.mlp\.lin2\.bias",
    ),
    "a shape": (
        lambda: changed(lambda state: state.update({"mask_decoder.mask_tokens.weight": torch.zeros(1, 256)})),
        r"mask_decoder\.mask_tokens\.weight \(4, 256\) of SAM vit_b, found \(1, 256\)",
    ),
    "whole numbers": (
        lambda: changed(lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(1, 256).long()})),
        r"iou_token\.weight \(1, 256\) of SAM vit_b, found \(1, 256\) torch\.int64",
    ),
    "a scalar": (lambda: {"image_encoder.pos_embed": torch.zeros(())}, "found"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_tensors_are_named(case: str) -> None:
    make, words = FOREIGN[case]
    with pytest.raises(DataError, match=words) as caught:
        recognise_sam(make(), "checkpoint x.pth")
    assert caught.value.message.startswith("checkpoint x.pth: expected")


# Loading


@pytest.mark.parametrize("kind", SAMS)
def test_every_kind_loads(kind: str, tmp_path: Path) -> None:
    path = thin_file(tmp_path / "mine.pth", kind)
    loaded = load_sam(path)
    assert (loaded.kind, loaded.path) == (kind, path)
    assert loaded.signature == f"sam-{kind}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    assert identify_sam(path) == (path, kind)
    assert len(loaded.sam.image_encoder.blocks) == SAMS[kind].layers  # type: ignore[index]
    assert not any(value.is_meta for value in [*loaded.sam.parameters(), *loaded.sam.buffers()])
    other = next(name for name in SAMS if name != kind)
    with pytest.raises(DataError, match=f"expected SAM {other}, found SAM {kind}"):
        load_sam(path, other)


def test_weights_are_those_of_the_file_and_not_copied(random_vit_b: Path) -> None:
    state = torch.load(random_vit_b, mmap=True, weights_only=True)
    sam = load_sam(str(random_vit_b), "vit_b").sam
    assert all(torch.equal(value, state[key]) for key, value in sam.state_dict().items())
    assert not sam.training
    assert not any(value.requires_grad for value in sam.parameters())
    assert {value.dtype for value in [*sam.parameters(), *sam.buffers()]} == {torch.float32}
    maps = Path("/proc/self/maps")
    if maps.exists():
        ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(random_vit_b) in line]
        address = sam.image_encoder.pos_embed.data_ptr()
        assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


def test_it_computes_as_the_official_module_does(random_vit_b: Path) -> None:
    # The decoder and prompt encoder only: a plane through the image encoder takes seconds.
    sam = load_sam(random_vit_b).sam
    reference = official("build_sam").sam_model_registry["vit_b"](checkpoint=str(random_vit_b))
    assert torch.equal(sam.pixel_mean, reference.pixel_mean)
    assert torch.equal(sam.pixel_std, reference.pixel_std)
    torch.manual_seed(1)
    image = torch.randn(1, 256, 64, 64)
    click = (torch.tensor([[[300.0, 500.0]]]), torch.ones(1, 1))
    results = []
    for each in (sam, reference):
        with torch.inference_mode():
            sparse, dense = each.prompt_encoder(points=click, boxes=None, masks=None)
            place = each.prompt_encoder.get_dense_pe()
            results.append(each.mask_decoder(image, place, sparse, dense, multimask_output=True))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert float(results[0][0].std()) > 0


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({key: value.half() for key, value in thin_state("vit_b").items()}, path)
    assert {value.dtype for value in load_sam(path).sam.parameters()} == {torch.float32}


def test_an_official_name_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SAMS["vit_b"]
    path = thin_file(tmp_path / entry.file, "vit_b")
    size = path.stat().st_size
    with pytest.raises(DataError, match=f"expected 375042383 bytes, found {size}"):
        load_sam(path)
    # Of the right size it still has to be the right file.
    from dataclasses import replace

    monkeypatch.setitem(SAMS, "vit_b", replace(entry, size=size))
    with pytest.raises(DataError, match="expected the SHA-256 ec2df62732614e57") as caught:
        load_sam(path)
    assert entry.url in caught.value.hint
    assert load_sam(path.rename(tmp_path / "mine.pth")).kind == "vit_b"


def test_signature_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = thin_state("vit_b")
    torch.save(state, path)
    first = load_sam(path).signature
    assert load_sam(path).signature == first
    torch.save({key: value + 1 if key.endswith("iou_token.weight") else value for key, value in state.items()}, path)
    assert load_sam(path).signature != first


def test_errors_are_those_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("<html>")
    with pytest.raises(CryosamError, match="a web page"):
        load_sam(tmp_path / "x.pth")
    with pytest.raises(NotFoundError, match="CRYOSAM_CHECKPOINTS is not set"):
        load_sam(None, None)
