"""What the help of `copick training sasi` says of the defaults holds; progress off a terminal."""

from __future__ import annotations

import inspect
import io

import click
import pytest
from rich.console import Console

from copick_cryosam.cli.progress import TrainingDisplay
from copick_cryosam.cli.sasi_training import _settings, sasi
from copick_cryosam.sasi.settings import SasiSettings

NOTHING = dict.fromkeys(inspect.signature(_settings).parameters.keys() - {"path"})


def default_in_help(option: str) -> str:
    (found,) = (p for p in sasi.params if isinstance(p, click.Option) and option in p.opts)
    return str(found.help).rpartition("[default: ")[2].rstrip("]").split(",")[0]


def test_defaults_in_the_help_are_the_settings() -> None:
    settings = SasiSettings()
    for option, value in (
        ("--architecture", settings.architecture),
        ("--init", settings.init),
        ("--infill", "infill" if settings.infill.enabled else "no-infill"),
        ("--consistency", "consistency" if settings.consistency.enabled else "no-consistency"),
        ("--self-supervision", settings.self_supervision.mode),
        ("--steps", settings.training.steps),
        ("--seed", settings.training.seed),
        ("--precision", settings.training.precision),
        ("--polarity", settings.polarity),
        ("--device", settings.device),
    ):
        assert default_in_help(option) == str(value), option


def test_options_go_over_the_file(tmp_path) -> None:
    assert _settings(None, **NOTHING) == SasiSettings()
    path = tmp_path / "settings.yaml"
    path.write_text("infill: {enabled: false, chains: 5}\ntraining: {steps: 7, batch: 3}\n", encoding="utf-8")
    found = _settings(str(path), **{**NOTHING, "steps": 9, "consistency": False, "init": "embednet"})
    assert (found.infill.enabled, found.infill.chains, found.consistency.enabled) == (False, 5, False)
    assert (found.training.steps, found.training.batch) == (9, 3)
    assert (found.architecture, found.init) == ("embednet", "embednet")


def test_lines_with_the_time_that_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("copick_cryosam.cli.progress.time.perf_counter", lambda: float(next(clock)))
    with TrainingDisplay(Console(file=io.StringIO())) as display:
        display.begun(1)
        display.run_started("TS_1", "learn")
        display.progress("read", 1, 1)
        for done in range(10, 41):  # resumed at step 9
            display.progress("train", done, 40)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "steps: 12 of 40, about 28 s left"
    assert lines[-1] == "steps: 40 of 40, about 0 s left"
    assert len(lines) == 7
