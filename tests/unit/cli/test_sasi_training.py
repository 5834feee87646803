"""What the help of `copick training sasi` says of the defaults holds; progress off a terminal."""

from __future__ import annotations

import inspect
import io

import click
import pytest
from rich.console import Console

from copick_cryosam.cli.progress import TrainingDisplay
from copick_cryosam.cli.sasi_training import _settings, sasi
from copick_cryosam.sasi.settings import SASI_PRESETS, SasiSettings

NOTHING = dict.fromkeys(inspect.signature(_settings).parameters.keys() - {"preset", "path"})


def default_in_help(option: str) -> str:
    (found,) = (p for p in sasi.params if isinstance(p, click.Option) and option in p.opts)
    return str(found.help).rpartition("[default: ")[2].rstrip("]").split(",")[0]


def test_defaults_in_the_help_are_the_settings() -> None:
    settings = SasiSettings()
    for option, value in (
        ("--seed", settings.training.seed),
        ("--precision", settings.training.precision),
        ("--polarity", settings.polarity),
        ("--device", settings.device),
    ):
        assert default_in_help(option) == str(value), option


def test_presets_are_those_offered() -> None:
    (option,) = (p for p in sasi.params if "--preset" in p.opts)
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(SASI_PRESETS)
    assert _settings("paper", None, **NOTHING) == SASI_PRESETS["paper"]


@pytest.mark.parametrize(
    ("preset", "given", "found"),
    [
        ("embedded", {"architecture": "deepfinder"}, ("deepfinder", "none")),
        ("paper", {"init": "embednet"}, ("embednet", "embednet")),
        ("embedded", {"init": "none"}, ("embednet", "none")),
    ],
)
def test_architecture_and_init_fit_each_other(preset: str, given: dict[str, str], found: tuple[str, str]) -> None:
    settings = _settings(preset, None, **{**NOTHING, **given})
    assert (settings.architecture, settings.init) == found


def test_options_go_over_the_file(tmp_path) -> None:
    assert _settings("embedded", None, **NOTHING) == SasiSettings()
    path = tmp_path / "settings.yaml"
    path.write_text("infill: {enabled: true, chains: 5}\ntraining: {steps: 7, batch: 3}\n", encoding="utf-8")
    found = _settings("embedded", str(path), **{**NOTHING, "steps": 9, "consistency": True, "init": "embednet"})
    assert (found.infill.enabled, found.infill.chains, found.consistency.enabled) == (True, 5, True)
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
