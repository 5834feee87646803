"""`copick inference cryosam` with the second look: orientations in the picks, an average of them, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from copick_cryosam import pipeline
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.ranker import BetaCurve

SETTINGS = """
segmenter: {name: fake}
alignment: {rotations: 100, candidates: 8, shift: 0}
instances: {size_range: [0, 1000], max_picks: 4}
"""
BASE = ("-t", "wbp@10.0", "-i", "ribosome:curator/1", "--preset", "embedded", "--polarity", "dark", "-r", "TS_001")
PRECISIONS = np.linspace(0.95, 0.6, 8)
pytestmark = pytest.mark.usefixtures("one_thread")


class ToldRankers:
    """Sure of every candidate, the less so the less similar it is; what the nets learned is tested elsewhere."""

    signature = "told"
    curve = BetaCurve()

    def probability(self, evidence: np.ndarray, which: str) -> np.ndarray:
        return np.asarray(PRECISIONS[: len(evidence)])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rankers say, whatever the evidence."""
    monkeypatch.setattr(pipeline, "load_rankers", ToldRankers)


@pytest.fixture
def pick(ball_project: Any, tmp_path: Path) -> Any:
    """Picks with the embedded encoder and the segmenter that needs no weights."""
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS, encoding="utf-8")
    return lambda *more: ball_project.pick("--settings", str(path), *more, base=BASE)


@pytest.fixture
def untouched(ball_project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks a refusal: one line with a hint, before the models are loaded, and nothing is left behind."""

    def load(*_: object) -> None:
        raise AssertionError("models were loaded")

    monkeypatch.setattr(CryoSAM, "from_settings", load)
    before = ball_project.listing()

    def check(result: Any, message: str, hint: str) -> None:
        assert result.exit_code == 1, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert message in line
        assert line.endswith(hint)
        assert ball_project.listing() == before

    return check


def record_of(project: Any) -> dict[str, Any]:
    path = project.folder / "overlay/ExperimentRuns/TS_001/CryoSAM/cryosam_1_ribosome.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.usefixtures("told")
def test_picks_carry_orientations_and_their_average_is_written(ball_project: Any, pick: Any, tmp_path: Path) -> None:
    target = tmp_path / "ribosome.mrc"
    done = pick("--output-average", str(target))
    assert done.exit_code == 0, done.output
    points, picks = ball_project.found("TS_001")
    assert 1 <= len(points) <= 4
    assert picks.trust_orientation is True
    matrices = np.array([point.transformation for point in picks.points])
    turned = matrices[:, :3, :3]
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (len(turned), 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-5)
    np.testing.assert_array_equal(matrices[:, :3, 3], 0)
    np.testing.assert_array_equal(matrices[:, 3], np.tile([0, 0, 0, 1], (len(turned), 1)))
    # the scores are the expected precisions
    scores = picks.scores()
    assert np.abs(scores[:, None] - PRECISIONS).min(axis=1).max() < 1e-6
    assert (np.diff(scores) <= 0).all()

    wedge = record_of(ball_project)["parameters"]["result"]["wedge"]
    assert -90 <= wedge["tilt_min"] < wedge["tilt_max"] <= 90
    assert wedge["axis"] in ("y", "x")

    halves = [tmp_path / f"ribosome_half{k}.mrc" for k in (1, 2)]
    assert {*tmp_path.glob("ribosome*")} == {target, *halves, tmp_path / "ribosome_fsc.json"}
    for path in (target, *halves):
        with mrcfile.open(path) as file:
            assert float(file.voxel_size.x) == pytest.approx(ball_project.spacing)
            assert file.data.shape == (2 * 2 * ball_project.radius + 1,) * 3
            assert np.isfinite(file.data).all()
    content = json.loads((tmp_path / "ribosome_fsc.json").read_text(encoding="utf-8"))
    assert content["count"] == len(points)
    assert f"Average: {target}, {len(points)} particles, " in done.output


@pytest.mark.usefixtures("told")
def test_without_a_second_look_there_are_no_orientations(ball_project: Any, pick: Any) -> None:
    done = pick("--no-second-look", "--points-only")
    assert done.exit_code == 0, done.output
    points, picks = ball_project.found("TS_001")
    assert len(points) >= 1
    assert picks.trust_orientation is False
    matrices = np.array([point.transformation for point in picks.points])
    np.testing.assert_array_equal(matrices, np.tile(np.eye(4), (len(points), 1, 1)))
    assert record_of(ball_project)["parameters"]["result"]["wedge"] is None
    assert record_of(ball_project)["parameters"]["settings"]["alignment"]["second_look"] is False


@pytest.mark.usefixtures("told")
def test_given_tilts_are_used_and_recorded(ball_project: Any, tmp_path: Path) -> None:
    path = tmp_path / "tilts.yaml"
    tilts = "alignment: {rotations: 100, candidates: 8, shift: 0, tilt_range: [-48, 51], tilt_axis: x}"
    path.write_text(f"segmenter: {{name: fake}}\n{tilts}\n", encoding="utf-8")
    done = ball_project.pick("--settings", str(path), "--points-only", base=BASE)
    assert done.exit_code == 0, done.output
    assert "missing wedge" not in done.output
    wedge = record_of(ball_project)["parameters"]["result"]["wedge"]
    assert wedge == {"tilt_min": -48, "tilt_max": 51, "axis": "x", "estimated": False, "quality": 0}


@pytest.mark.parametrize("existing", ["a.mrc", "a_half2.mrc", "a_fsc.json"])
def test_an_average_replaces_nothing_unasked(
    pick: Any, untouched: Any, ball_project: Any, tmp_path: Path, existing: str
) -> None:
    (tmp_path / existing).write_text("mine", encoding="utf-8")
    refused = pick("--output-average", str(tmp_path / "a.mrc"))
    untouched(refused, f"found {tmp_path / existing}", "Choose another path, or --overwrite")
    assert (tmp_path / existing).read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.glob("a*")] == [existing]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("none/a.mrc", "expected the folder", "Make it, or choose another path"),
        ("a.map", "expected a name that ends in .mrc", "Add the ending"),
        ("", "expected a name that ends in .mrc", "Add the ending"),
    ],
)
def test_an_impossible_place_for_the_average(
    pick: Any, untouched: Any, tmp_path: Path, name: str, message: str, hint: str
) -> None:
    untouched(pick("--output-average", str(tmp_path / name) if name else ""), message, hint)
    assert not (tmp_path / "none").exists()


def test_an_average_needs_orientations(pick: Any, untouched: Any, ball_project: Any, tmp_path: Path) -> None:
    average = ("--output-average", str(tmp_path / "a.mrc"))
    message, hint = "--output-average: expected picks with orientations", "without --no-second-look"
    untouched(pick("--no-second-look", *average), message, hint)
    untouched(ball_project.pick(*average), message, hint)
    untouched(pick("--no-second-look", "--dry-run", *average), message, hint)
    assert not list(tmp_path.glob("a*"))


@pytest.mark.parametrize(
    "text", ["encoder: {name: dinov2-base}", "matching: {whitening: mean}", "matching: {strategy: hierarchical}"]
)
def test_a_second_look_that_its_ranking_does_not_fit(
    ball_project: Any, untouched: Any, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"{text}\nalignment: {{second_look: true}}\n", encoding="utf-8")
    refused = ball_project.pick("--settings", str(path), base=BASE)
    untouched(refused, "alignment.second_look: expected the encoder embednet, exhaustive matching", "change the others")
    other = ball_project.pick("--second-look", "--encoder", "dinov2-base", base=BASE)
    untouched(other, "alignment.second_look: expected the encoder embednet", "change the others")


@pytest.mark.usefixtures("told")
def test_an_average_that_nothing_was_searched_for_is_an_error(ball_project: Any, pick: Any, tmp_path: Path) -> None:
    assert pick("--points-only").exit_code == 0
    again = pick("--points-only", "--output-average", str(tmp_path / "a.mrc"))
    assert again.exit_code == 1, again.output
    (line,) = [line for line in again.output.splitlines() if line.startswith("Error: ")]
    assert "searched in this call, found none" in line
    assert line.endswith("--overwrite")
    assert not list(tmp_path.glob("a*"))


@pytest.mark.usefixtures("told")
def test_too_few_particles_for_halves_and_only_the_seed_sure(
    ball_project: Any, pick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pick("--points-only", "--max-picks", "1", "--output-average", str(tmp_path / "one.mrc"))
    assert one.exit_code == 0, one.output
    assert "1 particles, too few for a resolution" in one.output
    content = json.loads((tmp_path / "one_fsc.json").read_text(encoding="utf-8"))
    assert content["resolution_0143"] is None

    monkeypatch.setattr(ToldRankers, "probability", lambda _, evidence, which: np.full(len(evidence), 0.3))
    seed = pick("--points-only", "--overwrite", "--output-average", str(tmp_path / "seed.mrc"))
    # the seed is right whatever the ranking says
    assert seed.exit_code == 0, seed.output
    assert "1 particles" in seed.output
    scores = ball_project.found("TS_001")[1].scores()
    assert math.isclose(scores[0], 1.0)
    assert math.isclose(scores[1], 0.3, rel_tol=1e-6)
