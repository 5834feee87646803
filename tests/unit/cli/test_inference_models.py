"""Which models `copick inference cryosam` would use, and how it refuses before any work when they are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from copick_cryosam.cli.inference import _settings, cryosam
from copick_cryosam.compute import models as compute_models
from copick_cryosam.config import override, preset
from copick_cryosam.errors import InputError
from copick_cryosam.foundation import catalogue
from copick_cryosam.foundation.sam_modules import official


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalogue.VARIABLE, raising=False)
    monkeypatch.delenv("COPICK_CONFIG", raising=False)
    monkeypatch.setattr(compute_models, "cached_transformer", lambda entry: None)


@pytest.fixture
def project(project_on_disk: Any) -> Any:
    project_on_disk.add_tomogram("A")
    project_on_disk.add_picks("A", [[200.0, 150.0, 100.0]])
    return project_on_disk


@pytest.fixture(scope="session")
def vit_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-B of zeros, each tensor one number repeated."""
    with torch.device("meta"):
        sam = official("build_sam").sam_model_registry["vit_b"]()
    path = tmp_path_factory.mktemp("sam") / "zeros.pth"
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in sam.state_dict().items()}, path)
    return path


def pick(project: Any, *arguments: str) -> Result:
    words = ["-c", str(project.config), "-t", "wbp@10.0", "-i", "ribosome:curator/1", *arguments]
    return CliRunner().invoke(cryosam, words)


def refused(project: Any, *arguments: str) -> str:
    """The one line that says what is wrong; nothing may be written."""
    before = project.files()
    result = pick(project, *arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert project.files() == before
    return line


def given(name: str = "embedded", **options: Any) -> Any:
    names = (
        "settings_path",
        "sam_checkpoint",
        "encoder",
        "matching",
        "second_look",
        "max_picks",
        "min_precision",
        "polarity",
        "device",
    )
    return _settings(name, **{**dict.fromkeys(names), **options})


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_checkpoint_is_told_at_once(project: Any, more: tuple[str, ...]) -> None:
    line = refused(project, "--preset", "foundation", *more)
    assert "SAM checkpoint: expected sam_vit_h_4b8939.pth or sam_vit_l_0b3195.pth or sam_vit_b_01ec64.pth" in line
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth" in line
    assert "`copick cryosam models`" in line
    line = refused(project, "--preset", "paper", *more)
    assert "expected sam_vit_h_4b8939.pth, found no folder" in line
    line = refused(project, "--preset", "foundation", "--sam-checkpoint", "nowhere/sam.pth", *more)
    assert f"expected {Path('nowhere/sam.pth').absolute()}, found no such file" in line


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_unusable_checkpoint_is_told_at_once(
    project: Any, more: tuple[str, ...], vit_b: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.pth"
    page.write_text("<html>Not found</html>")
    line = refused(project, "--preset", "foundation", "--sam-checkpoint", str(page), *more)
    assert "expected a torch file, found a web page" in line
    line = refused(project, "--preset", "paper", "--sam-checkpoint", str(vit_b), *more)
    assert "expected SAM vit_h, found SAM vit_b" in line


def test_a_checkpoint_needs_a_model_that_reads_it(project: Any, vit_b: Path) -> None:
    line = refused(project, "--sam-checkpoint", str(vit_b))
    assert "--sam-checkpoint: expected a segmenter or an encoder that is sam, found promptnet and embednet" in line
    assert "--preset foundation" in line


def test_the_checkpoint_is_for_every_model_that_is_sam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "sam.pth")
    settings = given("foundation", sam_checkpoint="sam.pth")
    assert (settings.segmenter.checkpoint, settings.encoder.checkpoint) == (path, None)
    settings = given("foundation", sam_checkpoint="sam.pth", encoder="sam")
    assert (settings.segmenter.checkpoint, settings.encoder.checkpoint) == (path, path)
    settings = given(sam_checkpoint="sam.pth", encoder="sam")
    assert (settings.segmenter.checkpoint, settings.encoder.checkpoint) == (None, path)
    with pytest.raises(InputError, match="found promptnet and dino-small"):
        given(sam_checkpoint="sam.pth", encoder="dino-small")


def test_dry_run_shows_where_the_models_come_from(
    project: Any, vit_b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.files()
    arguments = ("--preset", "foundation", "--sam-checkpoint", str(vit_b), "--dry-run")
    planned = pick(project, *arguments)
    assert planned.exit_code == 0, planned.output
    assert f"SAM vit_b from {vit_b}" in planned.output
    assert "dinov2-reg-large from Hugging Face, about 1.2 GB" in planned.output
    assert "Would search 1 of 1 runs with about" in planned.output
    assert project.files() == before

    folder = tmp_path / "models" / "dinov2-reg-large"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    monkeypatch.setenv(catalogue.VARIABLE, str(folder.parent))
    assert f"dinov2-reg-large from {folder}" in pick(project, *arguments).output
    own = pick(project, *arguments, "--encoder", str(folder))
    assert f"{folder} from {folder}" in own.output
    assert "no estimate of memory and time" in own.output
    assert "SAM vit_b from" in pick(project, *arguments, "--encoder", "sam").output


def test_an_encoder_that_is_not_there_is_told_at_once(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "found no such folder" in refused(project, "--encoder", str(tmp_path / "none"))
    assert "expected the commit of someone/model to use" in refused(project, "--encoder", "someone/model")
    assert "found only pickled weights" in refused(project, "--encoder", "dino-base")
    (tmp_path / "empty").mkdir()
    assert "expected a folder with config.json, found none in it" in refused(
        project, "--encoder", str(tmp_path / "empty")
    )
    monkeypatch.setattr(compute_models, "find_spec", lambda name: None)
    line = refused(project, "--encoder", "dinov2-small")
    assert "expected the package transformers, found none" in line
    assert "pip install 'copick-cryosam[foundation]'" in line


def test_models_of_the_package_need_nothing() -> None:
    found = compute_models.named_models(preset("embedded"))
    assert [(model.name, model.place, model.known) for model in found.values()] == [
        ("embednet", None, True),
        ("promptnet", None, True),
    ]
    foreign = override(preset("embedded"), {"encoder": {"name": "someone/model", "revision": "1" * 40}})
    assert compute_models.named_models(foreign)["encoder"].place == "Hugging Face"
    assert not compute_models.named_models(foreign)["encoder"].known


def test_help_names_the_presets() -> None:
    text = CliRunner().invoke(cryosam, ["--help"]).output
    assert "[embedded|foundation|paper]" in text
    assert "--sam-checkpoint" in text
    assert "fake" not in text
