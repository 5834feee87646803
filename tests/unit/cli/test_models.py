"""`copick cryosam models`: what is known, what is here, and whether it is whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from copick_cryosam import weights
from copick_cryosam.cli.group import cryosam
from copick_cryosam.foundation import catalogue
from copick_cryosam.foundation.catalogue import SAMS, TRANSFORMERS


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalogue.VARIABLE, raising=False)
    monkeypatch.setattr(catalogue, "cached_transformer", lambda entry: None)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cryosam, ["models", *arguments])


def line_of(name: str, result: Result) -> str:
    """The model's line of the first table."""
    return next(line for line in result.output.splitlines() if line.startswith(f"  {name} "))


def test_every_model_is_listed_with_licence_and_source() -> None:
    result = call()
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 120
    for name in ("embednet", "promptnet"):
        assert "MIT" in line_of(name, result)
        assert line_of(name, result).endswith("in the package")
        assert weights.weight_hash(name) in result.output
    for entry in SAMS.values():
        assert "Apache-2.0" in line_of(f"SAM {entry.kind}", result)
        assert line_of(f"SAM {entry.kind}", result).endswith("  no")
        assert entry.url in result.output
        assert entry.sha256 in result.output
    for name, transformer in TRANSFORMERS.items():
        assert transformer.licence in line_of(name, result)
        assert f"{transformer.hub_id} {transformer.revision}" in result.output
    assert "CRYOSAM_CHECKPOINTS: not set" in result.output
    assert "hf auth login" in result.output


def test_what_is_here_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    monkeypatch.setattr(catalogue, "cached_transformer", lambda entry: tmp_path if entry.name == "dino-base" else None)
    short, anew = tmp_path / SAMS["vit_h"].file, tmp_path / "sam_vit_b_01ec64.safetensors"
    short.write_bytes(b"123")
    anew.write_bytes(b"123")
    folder = tmp_path / "dinov2-with-registers-small"
    folder.mkdir()
    (folder / "config.json").touch()
    result = call()
    assert result.exit_code == 0, result.output
    assert line_of("SAM vit_h", result).endswith(f"{short}: expected 2564550879 bytes, found 3")
    assert line_of("SAM vit_b", result).endswith(f"{anew}, saved anew")
    assert line_of("dinov2-reg-small", result).endswith(str(folder))
    assert line_of("dino-base", result).endswith("in the Hugging Face cache")
    assert line_of("dino-small", result).endswith("  no")
    assert call("--check").exit_code == 1


def test_check_compares_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    path, content = tmp_path / SAMS["vit_b"].file, b"weights"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(SAMS, "vit_b", replace(SAMS["vit_b"], size=len(content), sha256=digest))
    assert call().output.count(f"{path}\n") == 1
    right = call("--check")
    assert right.exit_code == 0, right.output
    assert line_of("SAM vit_b", right).endswith(f"{path}, SHA-256 agrees")
    path.write_bytes(b"WEIGHTS")
    wrong = call("--check")
    assert wrong.exit_code == 1
    assert f"another SHA-256, {hashlib.sha256(b'WEIGHTS').hexdigest()}" in line_of("SAM vit_b", wrong)


def test_missing_embedded_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "files", lambda _: tmp_path)
    result = call("--check")
    assert result.exit_code == 1
    assert "missing" in line_of("embednet", result)
