"""The curve from the ranking's probability to the expected precision, and how it is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from copick_cryosam.pretraining import fit_expectation
from copick_cryosam.pretraining.curves import Expectation, Measured, Row
from copick_cryosam.pretraining.fit_expectation import (
    Outcome,
    fit_curve,
    main,
    read_outcomes,
    save_outcomes,
    search_kinds,
)
from copick_cryosam.pretraining.validate import Layout, Survey, held_out_shapes
from copick_cryosam.ranker import BetaCurve, Rankers


def curve(*coefficients: float) -> BetaCurve:
    made = BetaCurve()
    made.coefficients.copy_(torch.tensor(coefficients))
    return made


def outcome(truth: BetaCurve, rng: np.random.Generator, count: int = 400, seeds: int = 1) -> Outcome:
    """Proposals whose probabilities mean what `truth` makes of them."""
    said = rng.beta(0.4, 0.8, size=count)
    true = rng.random(count) < truth.expected(said)
    return Outcome(
        probability=said, true=true, tomogram=rng.integers(2, size=count), left=int(true.sum()) + 3, seeds=seeds
    )


@pytest.mark.parametrize("truth", [curve(1, 1, 0), curve(1, 1, -1), curve(0.7, 1.6, -0.4)])
def test_what_probabilities_are_worth_is_found(truth):
    rng = np.random.default_rng(0)
    found = fit_curve([[outcome(truth, rng, 8_000)], [outcome(truth, rng, 5_000)]])
    p = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(found.expected(p), truth.expected(p), atol=0.03)


def test_layouts_weigh_the_same_whatever_their_proposals():
    rng = np.random.default_rng(0)
    high, low = curve(1, 1, 1), curve(1, 1, -1)
    found = fit_curve([[outcome(high, rng, 12_000)], [outcome(low, rng, 3_000)]])
    between = (high.expected(np.array([0.5])) + low.expected(np.array([0.5]))) / 2
    np.testing.assert_allclose(found.expected(np.array([0.5])), between, atol=0.03)


def test_a_layout_without_proposals_is_refused():
    with pytest.raises(ValueError, match="found one without"):
        fit_curve([[outcome(curve(1, 1, 0), np.random.default_rng(0), 0)]])


def test_own_f1_follows_the_curve_tomogram_by_tomogram():
    said = np.array([0.9, 0.6, 0.3, 0.9, 0.6])
    one = Outcome(
        probability=said,
        true=np.array([True, False, False, True, True]),
        tomogram=np.array([0, 0, 0, 1, 1]),
        left=4,
        seeds=1,
    )
    # as they are, 0.9 and 0.6 are kept in both: 3 of 4 right, 4 to find
    assert one.f1(BetaCurve()) == pytest.approx(2 * 3 / (4 + 4))
    # two and a half units of log-odds lower, 0.9 alone
    assert one.f1(curve(2, 2, -2.5)) == pytest.approx(2 * 2 / (2 + 4))
    assert one.best_f1() == pytest.approx(6 / 8)


def test_drawn_again_they_are_true_as_often_as_expected():
    rng = np.random.default_rng(0)
    one = outcome(curve(1, 1, 0), rng, 4000)
    again = one.drawn_again(curve(1, 1, -1), rng)
    expected = curve(1, 1, -1).expected(one.probability)
    assert again.true.mean() == pytest.approx(expected.mean(), abs=0.02)
    # three particles were not proposed, whatever is true of the others
    assert again.left - again.true.sum() == one.left - one.true.sum() == 3
    # where the probabilities are exact, stopping by them costs next to nothing of so many
    exact = one.drawn_again(curve(1, 1, 0), rng)
    assert 0 <= exact.best_f1() - exact.f1(curve(1, 1, 0)) < 0.02


def test_outcomes_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    given = [outcome(curve(1, 1, 0), rng, count, seeds) for count, seeds in ((7, 1), (0, 5), (3, 5))]
    save_outcomes(tmp_path / "some.npz", given)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]
    found = read_outcomes(tmp_path / "some.npz")
    assert len(found) == 3
    for one, other in zip(found, given, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
        np.testing.assert_array_equal(one.true, other.true)
        np.testing.assert_array_equal(one.tomogram, other.tomogram)
        assert (one.left, one.seeds) == (other.left, other.seeds)
        assert one.true.dtype == bool
    save_outcomes(tmp_path / "none.npz", [])
    assert read_outcomes(tmp_path / "none.npz") == []


def test_fit_writes_the_curve_beside_the_nets_and_nothing_else(tmp_path, capsys):
    weights = tmp_path / "ranker.safetensors"
    before = Rankers().state_dict()
    save_file({key: value.contiguous() for key, value in before.items()}, weights)
    rng, truth = np.random.default_rng(0), curve(1, 1, -1)
    for name in ("fresh-crowded-0-0.1", "tuning-few-0-0.05"):
        save_outcomes(tmp_path / f"{name}.npz", [outcome(truth, rng, 3000)])
    given = ["--out", str(tmp_path), "--weights", str(weights)]
    with pytest.raises(SystemExit, match="found none of tuning-crowded, fresh-few; run collect first"):
        main(["fit", *given])
    main(["fit", *given, "--layouts", "fresh-crowded", "tuning-few"])
    after = load_file(weights)
    assert set(after) == set(before)
    assert [key for key, value in after.items() if not torch.equal(value, before[key])] == ["curve.coefficients"]
    assert after["curve.coefficients"][2] < -0.5
    told = capsys.readouterr().out
    assert "fresh-crowded" in told
    assert "tuning-crowded" not in told
    # the curve that was written, on what it was learned from
    main(["check", *given, "--layouts", "fresh-crowded", "tuning-few"])
    assert told.startswith(capsys.readouterr().out)
    assert torch.equal(load_file(weights)["curve.coefficients"], after["curve.coefficients"])


def test_kinds_are_searched_with_every_number_of_seeds(monkeypatch):
    """Scoring is tested with the curves; here it is told."""
    layout = Layout(shape_zyx=(24, 48, 48), count=2, tomograms=1)
    drawn = next(Survey(templates=None, repeats=1, snrs=(0.5,), seed=0, shapes=held_out_shapes, layout=layout).draw())
    asked = []

    def told(view, truths, clicks, shape, counts, repeat, *, baseline):
        asked.append((shape.name, tuple(counts), len(clicks.zyx)))
        numbers = {"f1": 0.0, "best": 0.0, "baseline_f1": 0.0, "baseline_best": 0.0}
        row = Row(repeat=0, condition="", kind=shape.name, seeds=5, particles=9, left=4, **numbers)
        some = Expectation(
            condition="", seeds=5, expected=np.array([0.5]), true=np.array([True]), tomogram=np.array([0])
        )
        return Measured(rows=[row], expectations=[some])

    monkeypatch.setattr(fit_expectation, "score_view", told)
    found = list(search_kinds(None, drawn, layout))
    assert [name for name, _, _ in asked] == [shape.name for shape in drawn.shapes]
    assert {counts for _, counts, _ in asked} == {(1, 5)}
    assert [(one.left, one.seeds) for one in found] == [(4, 5)] * len(drawn.shapes)
