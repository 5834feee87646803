"""`copick evaluation localization` on a small project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import copick
import numpy as np
import pytest
from click.testing import CliRunner, Result

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.evaluation import localization
from copick_cryosam.errors import InputError

TRUTH = np.array([[100.0, 100, 100], [300, 100, 100], [500, 100, 100], [700, 100, 100]])


def write_picks(root: object, run: str, user: str, xyz: np.ndarray, scores: np.ndarray | None = None) -> None:
    picks = root.get_run(run).new_picks("ribosome", "1", user)  # type: ignore[attr-defined]
    picks.from_numpy(np.asarray(xyz, dtype=np.float64).reshape(-1, 3), scores=scores)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    content = {
        "config_type": "filesystem",
        "name": "test",
        "description": "test",
        "version": "1.0",
        "pickable_objects": [
            {"name": "ribosome", "is_particle": True, "label": 1, "radius": 50.0, "color": [0, 255, 0, 255]}
        ],
        "overlay_root": f"local://{tmp_path / 'overlay'}",
        "overlay_fs_args": {"auto_mkdir": True},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    root = copick.from_file(str(path))
    for name in ("TS_001", "TS_002", "TS_003"):
        root.new_run(name)
    # One seed, one hit, a second pick on the hit, one pick on nothing; two missed.
    found = np.array([[110.0, 100, 100], [300, 130, 100], [330, 100, 100], [900, 900, 900]])
    write_picks(root, "TS_001", "curator", TRUTH)
    write_picks(root, "TS_001", "cryosam", found, np.array([0.9, 0.8, 0.7, 0.6]))
    write_picks(root, "TS_001", "seed", TRUTH[:1])
    write_picks(root, "TS_002", "curator", TRUTH[:2])
    write_picks(root, "TS_002", "cryosam", np.empty((0, 3)))
    write_picks(root, "TS_003", "curator", TRUTH)
    return path


def call(config: Path, *arguments: str) -> Result:
    fixed = ["-c", str(config), "-i", "ribosome:cryosam/1", "--truth", "ribosome:curator/1"]
    return CliRunner().invoke(localization, [*fixed, *arguments])


def figures(config: Path, *arguments: str) -> dict:
    path = config.with_name("scores.json")
    result = call(config, *arguments, "--json", str(path))
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text(encoding="utf-8"))


def test_figures_per_run_and_pooled(config: Path) -> None:
    content = figures(config)
    first = content["runs"]["TS_001"]
    assert first["tolerance"] == 50.0
    assert (first["true_positives"], first["false_positives"], first["false_negatives"]) == (2, 2, 2)
    assert first["duplicates"] == 1
    assert content["runs"]["TS_002"]["recall"] == 0.0
    assert content["pooled"]["false_negatives"] == 4
    assert content["pooled"]["average_precision"] == pytest.approx(2 / 6)
    assert content["mean_over_runs"]["precision"] == 0.25
    assert content["left_out"] == ["TS_003"]


def test_table_names_runs_and_what_is_left_out(config: Path) -> None:
    result = call(config)
    assert result.exit_code == 0
    assert "TS_001" in result.output
    assert "All runs" in result.output
    header, first = (line for line in result.output.splitlines() if re.match(r"[┃│] (run|TS_001) ", line))
    names = [cell.strip() for cell in re.split("[┃│]", header)][1:-1]
    cells = [cell.strip() for cell in re.split("[┃│]", first)][1:-1]
    shown = dict(zip(names, cells, strict=True))
    assert (shown["TP"], shown["FP"], shown["dup"], shown["precision"]) == ("2", "2", "1", "0.500")
    assert "picks on one side only: TS_003" in result.output


def test_seeds_tolerance_and_score(config: Path) -> None:
    without = figures(config, "--seeds", "ribosome:seed/1")
    assert without["seeds_excluded"] is True
    assert without["runs"]["TS_001"]["predicted"] == without["runs"]["TS_001"]["truth"] == 3
    included = figures(config, "--seeds", "ribosome:seed/1", "--include-seeds")
    assert included["runs"]["TS_001"]["true_positives"] == 2
    assert figures(config, "--tolerance", "20")["pooled"]["true_positives"] == 1
    assert figures(config, "--min-score", "0.75")["runs"]["TS_001"]["predicted"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-r", "TS_009"], "TS_009"),
        (["-r", "TS_003"], "run TS_003: expected picks --input ribosome:cryosam/1"),
        (["--tolerance", "-1"], "tolerance: expected a positive number"),
        (["--truth", "virus:curator/1"], "virus"),
        (["--truth", "ribosome"], "expected one set, found ribosome:cryosam/1, ribosome:curator/1"),
        (["-i", "ribosome:curator/1", "--min-score", "0.5"], "--min-score: expected picks with scores"),
        (["--json", "/nowhere/at/all/scores.json"], "--json /nowhere/at/all/scores.json"),
    ],
)
def test_bad_input_is_one_line(config: Path, arguments: list[str], words: str) -> None:
    result = call(config, *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert words in lines[0]


def test_missing_config_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPICK_CONFIG", raising=False)
    result = CliRunner().invoke(localization, ["-i", "ribosome", "--truth", "ribosome"])
    assert (result.exit_code, result.stderr.splitlines()[0][:14]) == (1, "Error: config:")


def test_debug_logs_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    @click.command()
    @click.option("--debug", is_flag=True)
    @one_line_errors
    def fails(debug: bool) -> None:
        raise InputError("field: expected\n one line", hint="Do this")

    quiet = CliRunner().invoke(fails, [])
    assert (quiet.exit_code, quiet.stderr) == (1, "Error: field: expected one line. Do this\n")
    assert caplog.records == []
    assert CliRunner().invoke(fails, ["--debug"]).exit_code == 1
    assert caplog.records[0].exc_info is not None


def test_other_exceptions_are_not_hidden() -> None:
    @click.command()
    @one_line_errors
    def breaks() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(breaks, []).exception, ZeroDivisionError)


def test_command_module_imports_no_torch() -> None:
    code = (
        "import sys, copick.cli.util, copick_utils.cli.util; before = set(sys.modules); "
        "import copick_cryosam.cli.evaluation; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['copick_cryosam']"
