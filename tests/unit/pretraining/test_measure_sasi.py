"""The table of what each part of SaSi brings: its cells, what is kept of them, what is measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from copick_cryosam.errors import InputError
from copick_cryosam.pretraining import measure_sasi
from copick_cryosam.pretraining.measure_sasi import AGAINST, Cell, cell_path, cells, effects, measure, read, table
from copick_cryosam.pretraining.sasi_trial import VARIANTS
from copick_cryosam.sasi.settings import SasiSettings

WANTED = cells((10, 3), (0, 1), ("supervised only", "CryoSAM"))


def cell(f1: float, seconds: float = 60.0) -> dict[str, Any]:
    return {"f1": f1, "best": f1, "precision": f1, "recall": f1, "seconds": seconds}


def rows(text: str) -> dict[str, dict[str, str]]:
    """Entries of a table in Markdown by row and column."""
    head, _, *lines = ([entry.strip() for entry in line.strip("|").split("|")] for line in text.splitlines())
    return {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}


def test_the_table_says_what_it_is_the_mean_of() -> None:
    found = table(
        {
            ("supervised only", 3, 0): cell(0.5, 60),
            ("supervised only", 3, 1): cell(0.7, 120),
            ("supervised only", 10, 0): cell(0.8, 180),
            ("CryoSAM", 10, 0): cell(0.4, 30),
            ("CryoSAM", 10, 1): cell(0.4, 30),
            ("CryoSAM", 5, 0): cell(0.1, 30),
        },
        (10, 3),
    )
    entries = rows(found)
    assert list(entries) == list(VARIANTS)
    assert {"3 points", "10 points", "minutes"} <= entries["all"].keys()
    assert "5 points" not in entries["all"]
    assert found.index("3 points") < found.index("10 points")
    one = entries["supervised only"]
    assert (one["3 points"], one["10 points"], one["minutes"]) == ("0.60 ± 0.14", "0.80 (n = 1)", "2.0")
    other = entries["CryoSAM"]
    assert (other["3 points"], other["10 points"], other["minutes"]) == ("not measured", "0.40 ± 0.00", "0.5")
    assert (entries["all"]["3 points"], entries["all"]["minutes"]) == ("not measured", "")


def test_one_seed_has_no_spread_and_nothing_measured_is_said() -> None:
    entries = rows(table({("CryoSAM", 3, 0): cell(0.456), ("all", 3, 0): cell(0.5)}, (3,)))
    assert (entries["CryoSAM"]["3 points"], entries["all"]["3 points"]) == ("0.46", "0.50")
    assert {entry["3 points"] for entry in rows(table({}, (3,))).values()} == {"not measured"}


def test_what_a_part_changes_is_paired_and_a_data_set_counts_once() -> None:
    measured = {
        ("supervised only", 3, 0): cell(0.5),
        ("supervised only", 10, 0): cell(0.5),
        ("supervised only", 3, 1): cell(0.1),
        ("all", 3, 0): cell(0.6),
        ("all", 10, 0): cell(0.4),
        ("all", 3, 1): cell(0.3),
        ("all", 5, 1): cell(0.9),
    }
    entries = rows(effects(measured))
    assert list(entries) == list(AGAINST)
    assert entries["all"] == {"against": "supervised only", "change of F1": "+0.10 ± 0.10", "gains": "2 of 3"}
    assert entries["ladder"]["change of F1"] == "not measured"
    assert rows(effects({key: one for key, one in measured.items() if key[2] == 0}))["all"]["change of F1"] == "+0.00"


def test_every_cell_has_a_file_of_its_own_and_tables_of_fewer_seeds_come_first() -> None:
    whole = cells((3, 10), (0, 1), tuple(VARIANTS))
    assert len({cell_path(Path(), one) for one in whole}) == len(whole) == 4 * len(VARIANTS)
    assert [one[1:] for one in whole] == [
        pair for pair in ((3, 0), (3, 1), (10, 0), (10, 1)) for _ in range(len(VARIANTS))
    ]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that were measured, none of them really; the third that is begun is killed."""
    done: list[Cell] = []

    def quick(_data: object, variant: str, shots: int, seed: int, _base: SasiSettings) -> dict[str, Any]:
        done.append((variant, shots, seed))
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"f1": shots / 20 + seed / 10, "best_step": 1}

    monkeypatch.setattr(measure_sasi, "_data", lambda *_: None)
    monkeypatch.setattr(measure_sasi, "run_variant", quick)
    return done


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path, measured: list[Cell]) -> None:
    def go_on() -> None:
        measure(tmp_path / "cells", WANTED, None, SasiSettings())

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert list(read(tmp_path / "cells")) == sorted(WANTED[:2])
    cell_path(tmp_path / "cells", WANTED[3]).with_suffix(".partial").write_text('{"half', encoding="utf-8")
    go_on()
    assert measured[3:] == WANTED[2:]
    go_on()
    assert len(measured) == 3 + len(WANTED) - 2
    found = read(tmp_path / "cells")
    assert found.keys() == set(WANTED)
    assert {one["f1"] for key, one in found.items() if key[1:] == (10, 1)} == {0.6}
    assert all(one["seconds"] >= 0 for one in found.values())
    assert not list((tmp_path / "cells").glob("*.partial"))


def test_cells_of_other_kinds_are_not_taken_for_these(tmp_path: Path, measured: list[Cell]) -> None:
    measure(tmp_path, WANTED[:1], None, SasiSettings(), tuning=True)
    with pytest.raises(InputError, match="expected kinds that were held out, found to choose settings on"):
        measure(tmp_path, WANTED[:1], None, SasiSettings())


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., None]:
    given = (
        "--out",
        str(tmp_path / "cells"),
        "--shots",
        "3",
        "--seeds",
        "0",
        "--variants",
        "CryoSAM",
        "--threads",
        "1",
    )
    return lambda *more: measure_sasi.main([*given, *more])


def test_the_command_writes_the_table_between_the_marks(
    tmp_path: Path, command: Callable[..., None], measured: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nstale\n{}\nafter\n".format(*measure_sasi.MARKS), encoding="utf-8")
    command("--readme", str(readme))
    made = table(read(tmp_path / "cells"), (3,))
    assert rows(made)["CryoSAM"]["3 points"] == "0.15"
    assert made in capsys.readouterr().out
    text = readme.read_text(encoding="utf-8")
    assert made in text
    assert "stale" not in text


def test_a_readme_without_marks_is_refused_before_the_work(
    tmp_path: Path, command: Callable[..., None], measured: list[Cell]
) -> None:
    (tmp_path / "README.md").write_text("no marks\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected the lines"):
        command("--readme", str(tmp_path / "README.md"))
    assert measured == []
