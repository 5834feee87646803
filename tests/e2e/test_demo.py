"""The demo makes a project, picks in it, scores the picks and touches no folder but its own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import copick_cryosam.demo
from copick_cryosam.cli.demo import demo
from copick_cryosam.config import preset
from copick_cryosam.demo import OBJECTS, DemoScene, pick_and_score, prepare
from copick_cryosam.errors import OutputError
from copick_cryosam.evaluation import localization
from copick_cryosam.io.job import PicksUri, TomogramUri
from copick_cryosam.io.picks import read_picks
from copick_cryosam.io.project import open_project

SMALL = DemoScene(shape_zyx=(48, 112, 112), counts=(6, 10), runs=("TS_001", "TS_002"))
WEIGHTS = [files("copick_cryosam.weights").joinpath(f"{name}.safetensors") for name in ("embednet", "promptnet")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small project."""
    place = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    prepare(place, SMALL)
    return place


def test_project_holds_what_it_says(folder: Path) -> None:
    project = open_project(folder / "config.json")
    assert project.run_names == SMALL.runs
    for each, wanted in zip(OBJECTS, SMALL.counts, strict=True):
        radius = project.object(each.name).radius
        assert radius == pytest.approx(each.radius * 10, rel=0.15)
        truth = read_picks(project, PicksUri(each.name, "truth", "0"))
        assert all(len(truth[run][0]) >= wanted / 2 for run in SMALL.runs)
        seeds = read_picks(project, PicksUri(each.name, "curator", "1"))
        assert list(seeds) == ["TS_001"]
        found = localization(seeds["TS_001"][0], None, truth["TS_001"][0], 25.0)
        assert (found.predicted, found.true_positives) == (1, 1)


def test_particles_are_dark_and_where_the_truth_says(folder: Path) -> None:
    project = open_project(folder / "config.json")
    volume = project.tomogram("TS_002", TomogramUri("wbp", 10.0))
    assert volume.grid.shape_zyx == SMALL.shape_zyx
    points, _ = read_picks(project, PicksUri("enzyme", "truth", "0"))["TS_002"]
    voxels = np.clip(np.round(volume.grid.to_voxels(points).zyx).astype(int), 2, np.array(SMALL.shape_zyx) - 3)
    data = volume.read()
    inside = [data[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].mean() for z, y, x in voxels]
    assert np.mean(inside) < data.mean() - 0.3 * data.std()
    # Levels of the pyramid keep the tomogram's extent.
    assert project.tomogram("TS_002", TomogramUri("wbp", 10.0), level=1).shape == (24, 56, 56)


def test_complete_project_is_kept_and_made_anew_when_asked(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "demo"
    prepare(place, SMALL)
    mine = place / "project" / "mine.txt"
    mine.write_text("kept", encoding="utf-8")
    prepare(place, SMALL)
    assert mine.exists()
    prepare(place, SMALL, anew=True)
    assert not mine.exists()
    one, two = (open_project(at / "config.json").tomogram("TS_001", TomogramUri("wbp", 10.0)) for at in (folder, place))
    np.testing.assert_array_equal(one.read(), two.read())


def test_interrupted_simulation_is_started_again(tmp_path: Path) -> None:
    place = tmp_path / "demo"

    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(place, SMALL, progress=interrupt)
    prepare(place, SMALL)
    assert open_project(place / "config.json").run_names == SMALL.runs


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "project"])
def test_foreign_folder_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=f"found {name}"):
        prepare(tmp_path, SMALL, anew=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_foreign_file_in_a_demo_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    prepare(place, SMALL)
    (place / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        prepare(place, SMALL)


def test_command_picks_scores_and_reports_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The weight-free backends find lumps, so the lump comes first here.
    monkeypatch.setattr(copick_cryosam.demo, "OBJECTS", OBJECTS[::-1])
    monkeypatch.setattr(copick_cryosam.demo, "FULL", SMALL)
    place = tmp_path / "demo"
    for _ in range(2):
        result = CliRunner().invoke(demo, ["--folder", str(place), "--preset", "fake"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        report = place / "report-enzyme.html"
        assert f"Report: {report}" in result.output
        page = report.read_text(encoding="utf-8")
        assert "TS_002" in page
        assert "enzyme:curator/1" in page
        assert "fake" in page
        report.unlink()
    assert "Simulating" not in result.output
    bad = CliRunner().invoke(demo, ["--folder", str(tmp_path), "--preset", "fake"])
    assert bad.exit_code == 1
    assert "found demo" in bad.output


def test_scores_are_those_of_the_picks_on_disk(folder: Path) -> None:
    summary, score = pick_and_score(folder / "config.json", "enzyme", preset("fake"))
    assert summary.succeeded
    assert score is not None
    assert [one.run for one in score.runs] == list(SMALL.runs)
    project = open_project(folder / "config.json")
    radius = project.object("enzyme").radius
    truth = read_picks(project, PicksUri("enzyme", "truth", "0"))["TS_002"][0]
    points, values = read_picks(project, PicksUri("enzyme", "cryosam", "1"))["TS_002"]
    assert score.runs[1].picks.f1 == localization(points, values, truth, radius).f1
    assert score.runs[0].picks.truth == len(read_picks(project, PicksUri("enzyme", "truth", "0"))["TS_001"][0]) - 1
    assert score.picks.recall > 0.5


@pytest.mark.skipif(not all(path.is_file() for path in WEIGHTS), reason="the weights are not in this source tree")
def test_embedded_models_find_unseen_complexes(folder: Path) -> None:
    summary, score = pick_and_score(folder / "config.json", "chaperone", preset("embedded"))
    assert summary.succeeded
    assert summary.polarity == "dark"
    assert score is not None
    assert score.picks.recall >= 0.8
    ranked, blobs = score.picks.average_precision, score.blobs.average_precision
    assert ranked is not None
    assert blobs is not None
    assert ranked >= max(0.5, 2 * blobs)
