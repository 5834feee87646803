"""The picture of a training's curve: what was measured is in it, and it appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from copick_cryosam.errors import OutputError
from copick_cryosam.report.training_curve import save_training_curve

CURVE = [
    {"phase": "self-supervised", "step": 10, "contrastive": 2.0},
    {"phase": "supervised", "step": 20, "supervised": 9.0, "held_out": None},
    {"phase": "supervised", "step": 30, "supervised": 4.0, "held_out": 0.6},
]


def test_lines_of_what_was_measured(tmp_path: Path) -> None:
    text = save_training_curve(tmp_path / "a.svg", CURVE, 30).read_text(encoding="utf-8")
    for words in ("training points", "held-out points (right)", "self-supervision", "kept: step 30"):
        assert f"<!-- {words} -->" in text
    assert "<!-- consistency -->" not in text
    again = save_training_curve(tmp_path / "b.svg", CURVE, 30)
    assert again.read_text(encoding="utf-8") == text
    for name in ("c.png", "c.pdf"):
        assert save_training_curve(tmp_path / name, CURVE).stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 4


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a place that can be written"):
        save_training_curve(tmp_path / "nowhere" / "a.png", CURVE)
