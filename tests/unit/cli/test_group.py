"""`copick cryosam`: commands are listed without being imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from copick_cryosam import weights
from copick_cryosam.cli import main
from copick_cryosam.cli.group import LazyGroup, cryosam


def test_commands_are_listed_without_import() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from copick_cryosam.cli.group import cryosam\n"
        "print(CliRunner().invoke(cryosam, ['--help']).output)\n"
        "names = ('torch', 'numpy', 'copick_cryosam.cli.info')\n"
        "sys.exit(', '.join(name for name in names if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert "info" in done.stdout
    assert "models" in done.stdout


def test_short_help_is_that_of_the_command() -> None:
    context = click.Context(cryosam)
    assert isinstance(cryosam, LazyGroup)
    assert cryosam.list_commands(context) == ["demo", "discover", "embed", "info", "models"]
    found = cryosam.get_command(context, "info")
    assert found is not None
    assert found.name == "info"
    assert found.get_short_help_str(200) in CliRunner().invoke(cryosam, ["--help"], terminal_width=200).output
    assert cryosam.get_command(context, "nothing") is None


def test_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(cryosam, ["nothing"])
    assert result.exit_code == 2
    assert "No such command 'nothing'" in result.output


def test_info_names_versions_devices_and_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = b"weights"
    (tmp_path / "embednet.safetensors").write_bytes(content)
    monkeypatch.setattr(weights, "files", lambda _: tmp_path)
    result = CliRunner().invoke(cryosam, ["info"])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.startswith("  ")}
    assert {"python", "torch", "copick", "cpu", "embednet", "promptnet", "segment-anything", "monai"} <= lines.keys()
    assert f"embednet-{hashlib.sha256(content).hexdigest()[:12]}" in lines["embednet"]
    assert "missing" in lines["promptnet"]


def test_info_names_the_checkpoints_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CRYOSAM_CHECKPOINTS", raising=False)
    assert "CRYOSAM_CHECKPOINTS is not set" in CliRunner().invoke(cryosam, ["info"]).output
    (tmp_path / "sam_vit_l_0b3195.pth").touch()
    (tmp_path / "dinov2-small").mkdir()
    (tmp_path / "dinov2-small" / "config.json").touch()
    monkeypatch.setenv("CRYOSAM_CHECKPOINTS", str(tmp_path))
    result = CliRunner().invoke(cryosam, ["info"])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.startswith("  ")}
    assert str(tmp_path) in lines["folders"]
    assert lines["found"].split(maxsplit=1)[1] == "SAM vit_l, dinov2-small"


def test_main_is_the_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["copick-cryosam", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "Usage: copick-cryosam" in capsys.readouterr().out


def test_entry_points_lead_to_commands() -> None:
    for group, name in (
        ("copick.commands", "cryosam"),
        ("copick.inference.commands", "cryosam"),
        ("copick.inference.commands", "sasi"),
        ("copick.training.commands", "sasi"),
    ):
        own = (each for each in entry_points(group=group) if each.value.startswith("copick_cryosam."))
        (found,) = (each for each in own if each.name == name)
        command = found.load()
        assert isinstance(command, click.Command)
        assert command.name == name
