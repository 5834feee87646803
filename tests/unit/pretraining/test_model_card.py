"""The model card is made from measured scores."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from copick_cryosam.errors import InputError
from copick_cryosam.pretraining.marked_part import replace_part
from copick_cryosam.pretraining.model_card import MARKS, section
from copick_cryosam.pretraining.validate import KindScore

ROW = KindScore(
    repeat=0,
    snr=0.1,
    kind="3h84",
    truth=20,
    f1=0.8,
    precision=0.75,
    recall=0.9,
    oracle_f1=0.85,
    proposal_recall=1.0,
    baseline_f1=0.1,
    baseline_oracle_f1=0.2,
    dice=float("nan"),
)


def test_tables_hold_means_and_spreads_the_least_noisy_first() -> None:
    rows = [ROW, replace(ROW, repeat=1, f1=0.6, dice=0.7), replace(ROW, kind="new", f1=0.1), replace(ROW, snr=0.05)]
    text = section(rows)
    assert text.index("SNR 0.1") < text.index("SNR 0.05")
    assert "60 particles" in text
    assert "| 3h84, r 5 | 0.70 ± 0.10 |" in text
    assert "| new | 0.10 ± 0.00 |" in text
    # a data set without masks does not count as one of no overlap
    assert "0.70 ± 0.00 |" in text
    assert section([ROW]).splitlines()[-1].endswith("| – |")
    assert "| **mean of all** | 0.50 ± 0.29 |" in text


def test_only_what_lies_between_the_marks_is_replaced(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"above\n{MARKS[0]}\nold\n{MARKS[1]}\nbelow\n", encoding="utf-8")
    replace_part(card, MARKS, "new")
    assert card.read_text(encoding="utf-8") == f"above\n{MARKS[0]}\nnew\n{MARKS[1]}\nbelow\n"


def test_a_card_without_marks_is_left_alone(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("nothing", encoding="utf-8")
    with pytest.raises(InputError, match="scores: begin"):
        replace_part(card, MARKS, "new")
    assert card.read_text(encoding="utf-8") == "nothing"


def test_the_shipped_card_has_the_marks() -> None:
    card = files("copick_cryosam.weights").joinpath("MODEL_CARD.md").read_text(encoding="utf-8")
    assert 0 < card.index(MARKS[0]) < card.index(MARKS[1])
