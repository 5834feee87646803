"""Scores over seeds and conditions: the seeds count on neither side, and nothing differs from the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from copick_cryosam.errors import InputError, SeedError
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining import curves, measure_curves
from copick_cryosam.pretraining.conditions import REFERENCE, Condition
from copick_cryosam.pretraining.curves import Plan, View, measure_data_set, score_view
from copick_cryosam.pretraining.exam import Exam, draw_clicks
from copick_cryosam.pretraining.marked_part import replace_part
from copick_cryosam.pretraining.ranking import gather, rank, segment_seeds
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.types import AngstromPoints, Grid, VoxelPoints

SIZE = (24, 64, 64)
RADIUS = 5.0
CENTRES = np.array([[12.0, 12, 12], [11, 14, 45], [13, 40, 20], [12, 50, 50], [11, 30, 35], [12, 51, 12], [12, 30, 56]])
PLAN = Plan(
    shape_zyx=(24, 56, 56),
    count=8,
    seed_counts=(1, 2),
    snrs=(0.1, 0.5),
    noise_seeds=(1, 2),
    conditions=(Condition(name="coarse", voxel_spacing=15.0), Condition(name="dark", dark=True)),
    preset="fake",
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> CryoSAM:
    return CryoSAM.from_preset("fake", device="cpu")


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """Bright balls at `CENTRES` in a little noise."""
    index = np.indices(SIZE)[:, None] - CENTRES.T[:, :, None, None, None]
    nearest = np.sqrt((index**2).sum(axis=0)).min(axis=0)
    noise = np.random.default_rng(2).normal(size=SIZE) * 0.1
    return (np.clip(RADIUS + 0.5 - nearest, 0, 1) + noise).astype(np.float32)


def exam(truth: np.ndarray, seeds: np.ndarray) -> Exam:
    """One tomogram of 1 Å voxels with one true position per row, one run without anything beside it."""
    grid = Grid((1, 1, 1), 1.0)
    none = AngstromPoints(np.zeros((0, 3)))
    return Exam(
        truths=[grid.to_angstrom(VoxelPoints(truth)), none],
        seeds=[grid.to_angstrom(VoxelPoints(seeds)), none],
        tolerance=2.0,
        grid=grid,
    )


def far(count: int, offset: float = 0.0) -> np.ndarray:
    return np.stack([np.arange(count) * 10.0 + offset, np.zeros(count), np.zeros(count)], axis=1)


NOTHING = (VoxelPoints(np.zeros(0)), np.zeros(0))


def test_seeds_are_left_out_on_both_sides():
    truth = far(10)
    points = VoxelPoints(np.concatenate([truth[:6], far(4, offset=1000.0)]))
    scores = np.linspace(1, 0.1, 10)
    pooled, kept = exam(truth, truth[:4] + 0.5).score([(points, scores), NOTHING])
    assert (pooled.truth, pooled.predicted, pooled.true_positives) == (6, 6, 2)
    assert kept[0].tolist() == [False] * 4 + [True] * 6


@pytest.mark.parametrize("seeds", [0, 2, 4, 6])
def test_a_picker_that_finds_every_second_particle_scores_alike_with_any_number_of_seeds(seeds):
    """Seeds drawn without regard to what is found leave the F1 of the whole tomogram."""
    truth = far(12)
    found = truth[::2]
    points = VoxelPoints(np.concatenate([found, far(5, offset=1000.0)]))
    scores = np.concatenate([np.ones(6), np.full(5, 0.5)])
    one = exam(truth, truth[:seeds])
    pooled, _ = one.score([(points, scores), NOTHING])
    assert one.f1(pooled) == pytest.approx(2 * 6 / (11 + 12))
    # without the five wrong ones
    assert one.best_f1(pooled) == pytest.approx(2 * 6 / (6 + 12))


def test_nothing_found_scores_nothing():
    one = exam(far(5), far(1))
    pooled, _ = one.score([NOTHING, NOTHING])
    assert one.f1(pooled) == 0
    assert one.best_f1(pooled) == 0


def test_clicks_are_nested_inside_and_beside_particles_of_all_tomograms():
    truths = [np.random.default_rng(k).uniform(0, SIZE, size=(30, 3)) for k in range(2)]
    many = draw_clicks(truths, SIZE, RADIUS, 12, np.random.default_rng(5))
    assert len(many.zyx) == 12
    assert set(many.tomogram.tolist()) == {0, 1}
    assert sorted([*many.among(0, 5), *many.among(1, 5)]) == list(range(5))
    for where, click in zip(many.tomogram, many.zyx, strict=True):
        nearest = truths[where][np.linalg.norm(truths[where] - click, axis=1).argmin()]
        assert np.linalg.norm(nearest - click) < RADIUS
        assert (nearest[1:] > RADIUS).all()
        assert (nearest[1:] < np.array(SIZE[1:]) - RADIUS).all()


def test_clicks_of_a_kind_without_particles_are_none():
    none = draw_clicks([np.zeros((0, 3)), np.zeros((0, 3))], SIZE, RADIUS, 5, np.random.default_rng(0))
    assert none.zyx.shape == (0, 3)


def test_seeds_segmented_once_give_what_the_pipeline_gives(model, volume):
    tomogram = model.open(volume, None, RADIUS, polarity="light")
    seeds = VoxelPoints(CENTRES[:3] + 0.4)
    masks = segment_seeds(model, tomogram, seeds, RADIUS)
    for count in (1, 3):
        some = VoxelPoints(seeds.zyx[:count])
        whole, parts = model.seed(tomogram, some, RADIUS), gather(model, tomogram, masks[:count], some, RADIUS)
        np.testing.assert_array_equal(parts.features, whole.features)
        np.testing.assert_array_equal(parts.scores, whole.scores)
        assert [one.size for one in parts.instances] == [one.size for one in whole.instances]

        query = model.query([whole])
        ranked, found = (
            rank(model, [tomogram], query, [parts], RADIUS)[0],
            model.search(tomogram, query, [whole], RADIUS),
        )
        np.testing.assert_array_equal(ranked.score, found.proposals.score)
        np.testing.assert_array_equal(ranked.expected_precision, found.expected_precision)
        assert ranked.score[ranked.kept - 1] == found.threshold


def test_seeds_without_a_mask_are_none_as_in_the_pipeline(model, volume):
    tomogram = model.open(-volume, None, RADIUS, polarity="light")
    seeds = VoxelPoints(CENTRES[:1])
    with pytest.raises(SeedError):
        model.seed(tomogram, seeds, RADIUS)
    assert gather(model, tomogram, segment_seeds(model, tomogram, seeds, RADIUS), seeds, RADIUS) is None


def test_the_polarity_is_the_pipelines(model, volume):
    seeds = VoxelPoints(CENTRES[:1])
    for one, expected in ((volume, "light"), (-volume, "dark")):
        view = View(model, REFERENCE, [one])
        assert view.decide(0, seeds, RADIUS) == model.open(one, seeds, RADIUS).polarity == expected


def test_kinds_with_too_few_particles_are_left_out_at_that_number_of_seeds(model, volume):
    shape = random_shape(np.random.default_rng(1), family="globule", radius=RADIUS, name="ball")
    truths = [CENTRES, np.zeros((0, 3))]
    clicks = draw_clicks(truths, SIZE, RADIUS, 5, np.random.default_rng(3))
    view = View(model, REFERENCE, [volume, np.random.default_rng(9).normal(size=SIZE).astype(np.float32)])
    measured = score_view(view, truths, clicks, shape, (1, 2, 3), 0, baseline=True)
    assert [(row.seeds, row.particles, row.left) for row in measured.rows] == [(1, 7, 6), (2, 7, 5)]
    for row, expectation in zip(measured.rows, measured.expectations, strict=True):
        assert 0 <= row.f1 <= row.best <= 1
        assert row.baseline_best > 0.5
        assert expectation.expected.shape == expectation.true.shape


@pytest.fixture
def small_kinds(monkeypatch):
    """Two small kinds instead of those to choose settings on, of which few would fit into a tiny scene."""

    def two(_templates, rng, *, tuning):
        assert tuning
        return [random_shape(rng, family="globule", radius=4.0, name=f"globule-{k}") for k in range(2)]

    monkeypatch.setattr(curves, "shapes_of", two)


@pytest.mark.usefixtures("small_kinds")
def test_a_data_set_gives_the_same_numbers_again():
    plan = replace(PLAN, snrs=(0.1,), conditions=PLAN.conditions[:1])
    first, second = (measure_data_set(plan, None, 0, 5, True) for _ in range(2))
    assert [repr(row) for row in first.rows] == [repr(row) for row in second.rows]
    assert {row.condition for row in first.rows} == {"reference", "coarse"}


@pytest.mark.usefixtures("small_kinds")
def test_the_command_writes_tables_and_pictures(tmp_path, capsys):
    out, numbers = tmp_path / "figures", tmp_path / "numbers.json"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{measure_curves.MARKS[0]}\nstale\n{measure_curves.MARKS[1]}\nafter\n", encoding="utf-8")
    given = [
        "--readme",
        str(readme),
        "--out",
        str(out),
        "--repeats",
        "1",
        "--tuning",
        "--json",
        str(numbers),
        "--threads",
        "1",
    ]
    measure_curves.main(given, PLAN)
    assert {path.name for path in out.iterdir()} == {
        "label-efficiency.svg",
        "noise.svg",
        "reliability.svg",
        "curves.md",
    }
    for picture in out.glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    # NaN is no JSON
    content = json.loads(numbers.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    text = (out / "curves.md").read_text(encoding="utf-8")
    assert [point["at"] for point in content["label_curve"]] == [1, 2]
    first = content["label_curve"][0]["scores"]["f1"]
    assert f"| 1 | {first['value']:.2f} ± {first['error']:.2f} |" in text
    assert [one["condition"] for one in content["conditions"]] == ["reference", "coarse", "dark"]
    assert "| coarse |" in text
    assert text in capsys.readouterr().out
    refreshed = readme.read_text(encoding="utf-8")
    assert refreshed.startswith("before\n<!--")
    assert refreshed.endswith("-->\nafter\n")
    assert "stale" not in refreshed
    assert "| coarse |" in refreshed
    for picture in out.glob("*.svg"):
        assert f"](figures/{picture.name})" in refreshed


def test_a_readme_without_marks_is_left_as_it_is(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing to fill in\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected the lines"):
        replace_part(readme, measure_curves.MARKS, "new")
    assert readme.read_text(encoding="utf-8") == "nothing to fill in\n"
