"""Embeddings that the project carries: made ahead or kept, reused where they match, and the same picks."""

from __future__ import annotations

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from copick_cryosam.encoders.fake import FakeEncoder

ROOT = Path(__file__).parents[2]


def embed(project: Any, *more: str) -> Result:
    from copick_cryosam.cli.process import cryosam_embed

    words = ["-c", str(project.config), "-t", "wbp@10.0", "--preset", "fake", *more]
    return CliRunner().invoke(cryosam_embed, words, prog_name="copick process cryosam-embed")


def told(result: Result) -> str:
    """What was said, without the breaks of lines."""
    return " ".join(result.output.split())


def outputs(project: Any) -> dict[str, Any]:
    """The picks of all runs as stored, their instance labels and binary masks (compressed bytes may differ)."""
    found: dict[str, Any] = {}
    for run in project.truth:
        (path,) = (project.folder / f"overlay/ExperimentRuns/{run}/Picks").iterdir()
        place = project.root().get_run(run)
        masks = [*place.get_segmentations(is_instance=True), *place.get_segmentations(is_instance=False)]
        found[run] = [path.read_bytes(), *(each.numpy().tobytes() for each in masks)]
    return found


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all tomograms that were encoded."""
    shapes = []
    original = FakeEncoder.encode

    def counting(self: FakeEncoder, volume: Any, **given: Any) -> Any:
        shapes.append(volume.shape)
        return original(self, volume, **given)

    monkeypatch.setattr(FakeEncoder, "encode", counting)
    return shapes


def test_a_second_call_reuses_what_the_first_kept_and_finds_the_same(ball_project: Any, encoded: list[Any]) -> None:
    assert ball_project.pick().exit_code == 0
    plain = outputs(ball_project)
    assert [len(each) for each in plain.values()] == [3, 3, 3]
    first = ball_project.pick("--overwrite", "--keep-embeddings")
    assert first.exit_code == 0, first.output
    assert "run TS_003: embeddings kept as cryosam-fake" in told(first)
    assert outputs(ball_project) == plain
    assert len(encoded) == 6

    second = ball_project.pick("--overwrite")
    assert second.exit_code == 0, second.output
    assert all(f"run {run}: embeddings cryosam-fake reused" in told(second) for run in ball_project.truth)
    assert outputs(ball_project) == plain
    assert len(encoded) == 6

    assert "reused" not in told(ball_project.pick("--overwrite", "--no-reuse-embeddings"))
    assert outputs(ball_project) == plain
    assert len(encoded) == 9


def test_embedded_ahead_for_any_object_and_whitening(ball_project: Any, encoded: list[Any]) -> None:
    done = embed(ball_project, "-i", "ribosome:curator/1")
    assert done.exit_code == 0, done.output
    assert "3 done, 0 skipped, 0 failed" in done.output
    assert len(encoded) == 3
    again = embed(ball_project, "--polarity", "dark")
    assert again.exit_code == 0, again.output
    assert "0 done, 3 skipped, 0 failed" in again.output
    assert len(encoded) == 3

    ball_project.add_picks("TS_002", ball_project.truth["TS_002"][:1, ::-1] * ball_project.spacing, name="gold")
    path = ball_project.folder / "settings.yaml"
    path.write_text("matching: {whitening: full}\n", encoding="utf-8")
    base = ("-t", "wbp@10.0", "-i", "gold:curator/1", "--preset", "fake", "--settings", str(path))
    found = {}
    for session, reuse in (("a", "--reuse-embeddings"), ("b", "--no-reuse-embeddings")):
        result = ball_project.pick(reuse, "-o", f"gold:cryosam/{session}", base=base)
        assert result.exit_code == 0, result.output
        picks = [
            ball_project.root().get_run(run).get_picks("gold", "cryosam", session)[0] for run in ball_project.truth
        ]
        found[session] = [(each.full_positions(), each.scores()) for each in picks]
    assert len(encoded) == 6
    for one, other in zip(found["a"], found["b"], strict=True):
        assert len(one[0]) > 0
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("change", ["weights", "data", "polarity", "damage"])
def test_stored_embeddings_that_do_not_match_are_not_used(
    ball_project: Any, encoded: list[Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    assert embed(ball_project, "--polarity", "light" if change == "polarity" else "dark", "-r", "TS_001").exit_code == 0
    if change == "weights":
        monkeypatch.setattr(FakeEncoder, "signature", "fake-other")
    if change == "data":
        ball_project.add_tomogram("TS_001", noisier(ball_project))
    if change == "damage":
        (path,) = ball_project.folder.glob("overlay/**/wbp_cryosam-fake_features.zarr/0/0/0/0/0")
        path.unlink()
    encoded.clear()
    reason = {"data": "other tomogram data", "weights": "other encoder weights", "damage": "missing or changed"}
    result = ball_project.pick("-r", "TS_001", "--keep-embeddings")
    assert result.exit_code == 0, result.output
    assert "encoded anew; stored embeddings are not used" in told(result)
    assert reason.get(change, "other polarity (light, now dark)") in told(result)
    assert len(encoded) == 1
    assert len(ball_project.found("TS_001")[0]) == 10

    assert "reused" in told(ball_project.pick("-r", "TS_001", "--overwrite"))
    assert len(encoded) == 1


def noisier(project: Any) -> Any:
    import zarr

    volume = zarr.open(str(project.chunk("TS_001").parents[3]), mode="r")["0"][:]
    volume[0, 0, 0] += 0.01
    return volume


def test_refused_before_anything_is_done(ball_project: Any) -> None:
    before = ball_project.listing()
    refusals = (
        (embed(ball_project), "polarity: expected dark or light, or picks that show it"),
        (embed(ball_project, "--preset", "paper", "--polarity", "dark"), "found dinov2-reg-large, whose tokens"),
        (embed(ball_project, "-i", "ribosome:nobody/1"), "expected points at ribosome:nobody/1"),
        (embed(ball_project, "-i", "ribosome:curator/1", "--polarity", "light"), "found the seeds darker"),
        (ball_project.pick("--encoder", "nonsense", "--keep-embeddings"), "found nonsense, whose tokens"),
        (ball_project.pick("--encoder", "nonsense", "--keep-embeddings", "--dry-run"), "found nonsense, whose tokens"),
    )
    for result, words in refusals:
        assert result.exit_code == 1
        errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, result.output
        assert words in errors[0]
    assert ball_project.listing() == before


def test_dry_run_writes_nothing(ball_project: Any) -> None:
    assert embed(ball_project, "--polarity", "dark", "-r", "TS_002").exit_code == 0
    before = ball_project.listing()
    planned = embed(ball_project, "--polarity", "dark", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "TS_001: 40 x 64 x 72 voxels (z, y, x) at 10 Å, would be embedded" in planned.output
    assert "TS_002: 40 x 64 x 72 voxels (z, y, x) at 10 Å, embeddings are there, would be checked" in planned.output
    assert ball_project.listing() == before


def test_failed_runs_do_not_stop_the_others(ball_project: Any) -> None:
    chunk = ball_project.chunk("TS_002")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    result = embed(ball_project, "--polarity", "dark")
    assert result.exit_code == 1
    assert "2 done, 0 skipped, 1 failed" in result.output
    assert "Retry the failed ones: copick process cryosam-embed -c" in result.output
    assert "-r TS_002" in result.output.splitlines()[-1]
    chunk.write_bytes(whole)
    assert "1 done, 2 skipped, 0 failed" in embed(ball_project, "--polarity", "dark").output


def test_the_plugin_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["copick.process.commands"]["cryosam-embed"].split(":")
    assert getattr(import_module(module), name).name == "cryosam-embed"


def test_the_record_does_not_depend_on_the_store(ball_project: Any) -> None:
    assert ball_project.pick("-r", "TS_001", "--keep-embeddings").exit_code == 0
    path = ball_project.folder / "overlay/ExperimentRuns/TS_001/CryoSAM/cryosam_1_ribosome.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["parameters_sha256"]
    again = ball_project.pick("-r", "TS_001")
    assert "1 skipped" in again.output
    assert "Warning" not in again.output
    assert ball_project.pick("-r", "TS_001", "--overwrite").exit_code == 0
    assert json.loads(path.read_text(encoding="utf-8"))["parameters_sha256"] == kept
