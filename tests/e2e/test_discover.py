"""`copick cryosam discover`: picks per cluster with a record, skipped, replaced, refused, and a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copick_cryosam.encoders import embednet
from copick_cryosam.io.discover_job import DiscoverJob

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _few_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop for the polarity that is no larger than needed here."""
    from copick_cryosam import discovery

    monkeypatch.setattr(discovery, "_CROP", (32, 48, 48))


def discover(project: Any, copick_cli: Any, *more: str, output: str = "ribosome", polarity: str = "dark") -> Any:
    words = ["-c", str(project.config), "-t", "wbp@10.0", "-o", output, "--polarity", polarity, "--device", "cpu"]
    return copick_cli("cryosam", "discover", *words, *more)


def sets(project: Any, run: str, user: str = "cryosam") -> dict[str, int]:
    picks = project.root().get_run(run).get_picks("ribosome", user)
    return {each.session_id: len(each.points) for each in picks}


def test_picks_are_written_skipped_and_replaced(ball_project: Any, copick_cli: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = discover(ball_project, copick_cli, "-r", "TS_001", "-r", "TS_003", "--report", str(page))
    assert done.exit_code == 0, done.output
    assert "2 done, 0 skipped, 0 failed" in done.output
    found = sets(ball_project, "TS_001")
    assert {"cluster-1", "cluster-rest"} <= set(found)
    assert sum(found.values()) >= 5
    # what it says is what is there
    for run in ("TS_001", "TS_003"):
        assert f"{run}: {sum(sets(ball_project, run).values())} picks\n" in done.output
        assert f"{run}: searched in " in done.output
    assert set(found) == set(sets(ball_project, "TS_003"))
    assert not sets(ball_project, "TS_002")
    (picks,) = ball_project.root().get_run("TS_001").get_picks("ribosome", "cryosam", "cluster-1")
    assert all(0 < point.score <= 1 for point in picks.points)
    near = np.linalg.norm(picks.numpy()[0][:, None, ::-1] / 10 - ball_project.truth["TS_001"], axis=2).min(axis=1)
    assert np.median(near) < ball_project.radius
    text = page.read_text(encoding="utf-8")
    assert "-i ribosome:cryosam/cluster-1 -o ribosome:cryosam/like-cluster-1" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")

    before = ball_project.listing("overlay")
    again = discover(ball_project, copick_cli, "-r", "TS_001", "-r", "TS_003")
    assert again.exit_code == 0, again.output
    assert "0 done, 2 skipped, 0 failed" in again.output
    assert ball_project.listing("overlay") == before

    mixed = discover(ball_project, copick_cli)
    assert mixed.exit_code == 1
    assert "clusters of another call in 2 of 3 runs" in mixed.output
    assert ball_project.listing("overlay") == before

    one = discover(ball_project, copick_cli, "-r", "TS_001", "--clusters", "1", "--max-picks", "3", "--overwrite")
    assert one.exit_code == 0, one.output
    assert sets(ball_project, "TS_001") == {"cluster-1": 3, "cluster-rest": 0}


def test_failed_run_is_told_and_the_others_are_done(ball_project: Any, copick_cli: Any) -> None:
    ball_project.add_tomogram("TS_002", np.full(ball_project.shape, 4.0))
    done = discover(ball_project, copick_cli, "-r", "TS_002", "-r", "TS_003", output="ribosome:cryosam/a-{cluster}")
    assert done.exit_code == 1
    assert "Error: TS_002 failed" in done.output
    assert "1 done, 0 skipped, 1 failed" in done.output
    assert "a-rest" in sets(ball_project, "TS_003")
    assert not sets(ball_project, "TS_002")


def test_nothing_found_is_complete(ball_project: Any, copick_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = embednet.EmbedNetEncoder.encode

    def blind(self: Any, *arguments: Any, **named: Any) -> Any:
        features = encode(self, *arguments, **named)
        assert features.centre is not None
        features.centre[:] = 0
        return features

    monkeypatch.setattr(embednet.EmbedNetEncoder, "encode", blind)
    page = ball_project.folder / "page.html"
    done = discover(ball_project, copick_cli, "-r", "TS_001", "--report", str(page))
    assert done.exit_code == 0, done.output
    assert sets(ball_project, "TS_001") == {"cluster-rest": 0}
    assert "Nothing was found" in page.read_text(encoding="utf-8")
    assert "1 skipped" in discover(ball_project, copick_cli, "-r", "TS_001").output


@pytest.mark.parametrize(
    ("more", "output", "message"),
    [
        (("-r", "TS_9"), "ribosome", "found 'TS_9'"),
        ((), "virus", "add {"),
        (("--radius", "50", "--min-radius", "40"), "ribosome", "one or the other"),
        (("--min-radius", "80", "--max-radius", "40"), "ribosome", "the smaller first"),
        (("--clusters", "some"), "ribosome", "a number or auto"),
        (("--clusters", "0"), "ribosome", "at least 1"),
        ((), "ribosome:{cluster}/1", "{cluster} once, in the session"),
        (("--report", "/nowhere/at/all.html"), "ribosome", "an existing folder"),
        (("--dry-run",), "ribosome", "Nothing was written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    ball_project: Any, copick_cli: Any, more: tuple[str, ...], output: str, message: str
) -> None:
    before = ball_project.listing()
    done = discover(ball_project, copick_cli, *more, output=output)
    assert done.exit_code == (0 if "--dry-run" in more else 1)
    assert message in done.output
    assert "Traceback" not in done.output
    assert ball_project.listing() == before


def test_missing_tomogram_and_gpu_and_undecided_polarity(ball_project: Any, copick_cli: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        no_gpu = discover(ball_project, copick_cli, "--device", "cuda")
        assert no_gpu.exit_code == 1
        assert "cuda" in no_gpu.output
    noise = np.random.default_rng(0).normal(size=ball_project.shape)
    for run in ball_project.truth:
        ball_project.add_tomogram(run, noise)
    undecided = discover(ball_project, copick_cli, "-r", "TS_001", polarity="auto")
    assert undecided.exit_code == 1
    assert "--polarity dark or --polarity light" in undecided.output
    assert not sets(ball_project, "TS_001")


def test_foreign_picks_are_not_replaced(ball_project: Any, copick_cli: Any) -> None:
    ball_project.root().get_run("TS_001").new_picks("ribosome", "cluster-7", "me").from_numpy(np.ones((1, 3)))
    before = ball_project.listing()
    refused = discover(ball_project, copick_cli, output="ribosome:me/cluster-{cluster}")
    assert refused.exit_code == 1
    assert "which CryoSAM did not write" in refused.output
    assert ball_project.listing() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_overlay_is_refused(ball_project: Any, copick_cli: Any) -> None:
    (ball_project.folder / "overlay").mkdir(exist_ok=True)
    (ball_project.folder / "overlay").chmod(0o500)
    assert "overlay_root" in discover(ball_project, copick_cli).output


def test_output_names() -> None:
    def names(output: str) -> str:
        return str(DiscoverJob.create(config="c", tomogram="wbp@10", output=output).set_of("3"))

    assert names("particle") == "particle:cryosam/cluster-3"
    assert names("particle:me") == "particle:me/cluster-3"
    assert names("particle:me/1") == "particle:me/1-3"
    assert names("particle:me/x{cluster}y") == "particle:me/x3y"
    job = DiscoverJob.create(config="c", tomogram="wbp@10", output="particle:me/x{cluster}y")
    assert job.is_set("particle", "me", "xresty")
    assert not job.is_set("particle", "me", "xothery")
    assert json.dumps(job.identity())
