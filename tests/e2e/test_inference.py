"""`copick inference cryosam` from one labelled ball to all of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def distances(truth: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each true centre to the nearest pick, in voxels."""
    return np.asarray(cKDTree(found).query(truth)[0])


def results(project: Any, run: str) -> tuple[bytes, NDArray[Any], NDArray[Any]]:
    """The stored picks, instance labels and binary mask of a run."""
    place = project.root().get_run(run)
    (path,) = (project.folder / f"overlay/ExperimentRuns/{run}/Picks").iterdir()
    (labels,) = place.get_segmentations(user_id="cryosam", is_instance=True)
    (binary,) = place.get_segmentations(user_id="cryosam")
    return path.read_bytes(), labels.numpy(), binary.numpy()


def same_results(one: Any, other: Any, run: str) -> bool:
    a, b = results(one, run), results(other, run)
    return a[0] == b[0] and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])


def test_one_seed_finds_all_balls_in_all_tomograms(ball_project: Any) -> None:
    done = ball_project.pick()
    assert done.exit_code == 0, done.output
    assert "3 done, 0 skipped, 0 failed" in done.output
    for run, truth in ball_project.truth.items():
        points, picks = ball_project.found(run)
        assert len(points) == len(truth)
        assert distances(truth, points).max() < 1.0
        scores = picks.scores()
        assert (np.diff(scores) <= 0).all()
        assert ((scores > 0) & (scores <= 1)).all()
        np.testing.assert_array_equal(picks.instance_ids(), np.arange(1, len(truth) + 1))
        _, labels, binary = results(ball_project, run)
        assert labels.shape == ball_project.shape
        np.testing.assert_array_equal(labels[tuple(np.rint(points).astype(int).T)], picks.instance_ids())
        np.testing.assert_array_equal(binary, labels > 0)
        ball = 4 / 3 * np.pi * ball_project.radius**3
        assert 0.7 * ball < np.median(np.bincount(labels.ravel())[1:]) < 1.4 * ball


def test_record_says_how_the_result_was_made(ball_project: Any) -> None:
    assert ball_project.pick("-r", "TS_002", "--max-picks", "4").exit_code == 0
    path = ball_project.folder / "overlay/ExperimentRuns/TS_002/CryoSAM/cryosam_1_ribosome.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    kept = record["parameters"]
    assert record["counts"] == {"picks": 4}
    assert kept["settings"]["instances"]["max_picks"] == 4
    assert kept["seeds"]["TS_001"]["count"] == 1
    assert kept["models"]["encoder"].startswith("fake-")
    assert kept["result"]["polarity"] == "dark"
    assert kept["result"]["proposals"] >= 4
    assert kept["job"]["seeds"] == "ribosome:curator/1"


def test_a_seed_on_background_is_named_at_the_end(ball_project: Any) -> None:
    truth = ball_project.truth["TS_001"]
    grid = np.indices(ball_project.shape).reshape(3, -1).T[::97]
    empty = grid[np.argmax(cKDTree(truth).query(grid)[0])]
    ball_project.add_picks("TS_001", np.concatenate([truth[:3], [empty]])[:, ::-1] * ball_project.spacing)
    done = ball_project.pick("-r", "TS_001", "--points-only")
    assert done.exit_code == 0, done.output
    named = [line for line in done.stdout.splitlines() if line.startswith("Warning: seed")]
    assert len(named) == 1, done.output
    assert named[0].startswith("Warning: seed 4 of run TS_001 at (")
    assert named[0].endswith("Check it, or leave it out")


def test_finished_runs_are_skipped_and_redone_when_asked(ball_project: Any) -> None:
    assert ball_project.pick().exit_code == 0
    before = ball_project.listing()
    again = ball_project.pick()
    assert again.exit_code == 0
    assert "0 done, 3 skipped, 0 failed" in again.output
    assert "Warning" not in again.output
    assert ball_project.listing() == before

    other = ball_project.pick("--max-picks", "2")
    assert "other inputs or settings and not replaced: TS_001, TS_002, TS_003" in other.output
    assert ball_project.listing() == before

    redone = ball_project.pick("--max-picks", "2", "-r", "TS_003", "--overwrite")
    assert redone.exit_code == 0
    assert "1 done, 0 skipped" in redone.output
    assert len(ball_project.found("TS_003")[0]) == 2
    assert len(ball_project.found("TS_002")[0]) == 6


def test_dry_run_writes_nothing(ball_project: Any) -> None:
    before = ball_project.listing()
    planned = ball_project.pick("--dry-run")
    assert planned.exit_code == 0, planned.output
    assert ball_project.listing() == before
    assert "TS_002: 40 x 64 x 72 voxels (z, y, x) at 10 Å, results absent, would be searched" in planned.output
    assert "Would search 3 of 3 runs" in planned.output
    assert "about" in planned.output

    assert ball_project.pick("-r", "TS_002").exit_code == 0
    before = ball_project.listing()
    planned = ball_project.pick("--dry-run", "--max-picks", "3")
    assert "TS_002: 40 x 64 x 72 voxels (z, y, x) at 10 Å, results stale, would be skipped" in planned.output
    assert "Would search 2 of 3 runs" in planned.output
    assert ball_project.listing() == before


def test_dry_run_names_runs_that_cannot_be_searched(ball_project: Any) -> None:
    ball_project.static_root().new_run("TS_004")
    planned = ball_project.pick("--dry-run")
    assert planned.exit_code == 1
    assert "Error: TS_004: run TS_004: expected tomogram wbp@10.0, found no tomograms" in planned.output
    assert "Would search 3 of 4 runs" in planned.output


def test_seeds_of_one_run_search_another(ball_project: Any) -> None:
    ball_project.add_picks("TS_002", [[5.0, 5.0, 5.0]])
    done = ball_project.pick("--seed-runs", "TS_001", "-r", "TS_003", "-o", "ribosome:cryosam/only", "--points-only")
    assert done.exit_code == 0, done.output
    points, _ = ball_project.found("TS_003", "only")
    assert distances(ball_project.truth["TS_003"], points).max() < 1.0
    root = ball_project.root()
    assert root.get_run("TS_002").get_picks(user_id="cryosam") == []
    assert root.get_run("TS_003").segmentations == []


def test_seeds_are_pooled_over_runs(ball_project: Any) -> None:
    ball_project.add_picks("TS_003", ball_project.truth["TS_003"][:2, ::-1] * ball_project.spacing)
    done = ball_project.pick()
    assert done.exit_code == 0, done.output
    path = ball_project.folder / "overlay/ExperimentRuns/TS_002/CryoSAM/cryosam_1_ribosome.json"
    seeds = json.loads(path.read_text(encoding="utf-8"))["parameters"]["seeds"]
    assert {run: each["count"] for run, each in seeds.items()} == {"TS_001": 1, "TS_003": 2}
    assert all(len(ball_project.found(run)[0]) == len(truth) for run, truth in ball_project.truth.items())


def test_only_the_region_of_interest_is_picked(ball_project: Any) -> None:
    mask = np.zeros(ball_project.shape, dtype=np.uint8)
    mask[:, :, :36] = 1
    run = ball_project.static_root().get_run("TS_001")
    run.new_segmentation(10.0, "gold", "1", user_id="curator").from_numpy(mask, dtype=np.uint8)
    done = ball_project.pick("--roi", "gold:curator/1", "-r", "TS_001")
    assert done.exit_code == 0, done.output
    points, _ = ball_project.found("TS_001")
    truth = ball_project.truth["TS_001"]
    inside = truth[truth[:, 2] < 35.5]
    assert len(points) == len(inside)
    assert distances(inside, points).max() < 1.0


def test_bright_particles_need_no_setting(ball_project: Any) -> None:
    import zarr

    for run in ball_project.truth:
        volume = zarr.open(str(ball_project.chunk(run).parents[3]), mode="r")["0"][:]
        ball_project.add_tomogram(run, -volume)
    assert ball_project.pick().exit_code == 0
    points, _ = ball_project.found("TS_002")
    assert distances(ball_project.truth["TS_002"], points).max() < 1.0


def test_settings_come_from_preset_then_file_then_options(ball_project: Any) -> None:
    path = ball_project.folder / "settings.yaml"
    path.write_text(
        "instances: {max_picks: 3}\nsegmenter: {fuse: union}\nmatching: {ratios: [4, 2]}\n", encoding="utf-8"
    )
    assert ball_project.pick("--settings", str(path), "-r", "TS_001").exit_code == 0
    assert len(ball_project.found("TS_001")[0]) == 3
    assert (
        ball_project.pick(
            "--settings", str(path), "-r", "TS_002", "--max-picks", "2", "--matching", "hierarchical"
        ).exit_code
        == 0
    )
    assert len(ball_project.found("TS_002")[0]) == 2
    record = ball_project.folder / "overlay/ExperimentRuns/TS_002/CryoSAM/cryosam_1_ribosome.json"
    settings = json.loads(record.read_text(encoding="utf-8"))["parameters"]["settings"]
    assert settings["matching"]["strategy"] == "hierarchical"
    assert (settings["segmenter"]["name"], settings["segmenter"]["fuse"]) == ("fake", "union")


def test_report_shows_the_runs_of_this_call(ball_project: Any) -> None:
    assert ball_project.pick("-r", "TS_003").exit_code == 0
    path = ball_project.folder / "report.html"
    done = ball_project.pick("--report", str(path), "-r", "TS_001", "-r", "TS_003")
    assert done.exit_code == 0, done.output
    assert f"Report: {path}" in done.output
    text = path.read_text(encoding="utf-8")
    assert "TS_001" in text
    assert "Run TS_003 was finished before" in text
    assert "copick inference cryosam -c" in text

    nothing = ball_project.pick("--report", str(path), "-r", "TS_003")
    assert nothing.exit_code == 1
    assert "found none" in nothing.output


KILL = """
import os, signal
from copick_cryosam.io.writing import Writer
original, left = Writer._write_masks, [{writes}]
def dying(self, *args, **kwargs):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return original(self, *args, **kwargs)
Writer._write_masks = dying
"""


@pytest.mark.parametrize("writes", [0, 3], ids=["first run, picks only", "second run, without the binary mask"])
def test_killed_in_the_middle_and_started_again(ball_project: Any, ball_template: Path, writes: int) -> None:
    killed = ball_project.start(before=KILL.format(writes=writes))
    assert killed.returncode == -9, killed.stderr
    finished = {"TS_001"} if writes else set()
    half = "TS_002" if writes else "TS_001"
    assert ball_project.root().get_run(half).get_picks(user_id="cryosam")

    again = ball_project.pick()
    assert again.exit_code == 0, again.output
    assert f"{3 - len(finished)} done, {len(finished)} skipped, 0 failed" in again.output
    undisturbed = type(ball_project)(Path(shutil.copytree(ball_template, ball_project.folder.parent / "undisturbed")))
    assert undisturbed.pick().exit_code == 0
    assert all(same_results(ball_project, undisturbed, run) for run in ball_project.truth)
    assert not [name for name in ball_project.listing("overlay") if name.endswith((".started", ".tmp"))]


def test_installed_commands(ball_project: Any) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    done = subprocess.run(
        [str(scripts / "copick"), *ball_project.arguments("-r", "TS_002")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "TS_002: 6 picks in" in done.stdout
    assert "\x1b" not in done.stdout


def test_listing_commands_imports_neither_torch_nor_the_method() -> None:
    code = (
        "import sys\n"
        "from copick.cli.cli import cli\n"
        "from click.testing import CliRunner\n"
        "for words in (['--help'], ['cryosam', '--help'], ['inference', 'cryosam', '--help']):\n"
        "    assert CliRunner().invoke(cli, words).exit_code == 0, words\n"
        "sys.exit(', '.join(name for name in sys.modules if name.split('.')[0] in ('torch', 'matplotlib', 'jinja2')\n"
        "         or name in ('copick_cryosam.compute', 'copick_cryosam.io', 'copick_cryosam.cli.demo')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
