"""Bars on a terminal, plain lines elsewhere; failures go to standard error once."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from copick_cryosam.cli.progress import Display
from copick_cryosam.compute import Outcome
from copick_cryosam.errors import DataError

DONE = Outcome(run="TS_[1]", state="done", picks=7, seconds=1.26)
SKIPPED = Outcome(run="TS_2", state="skipped", picks=3, stale=True)
FAILED = Outcome(run="TS_3", state="failed", error=DataError("run TS_3: broken\nchunk", hint="Mend it"))


def work(display: Display) -> None:
    with display:
        display.begun(2)
        display.run_ended(SKIPPED)
        display.run_started("TS_[1]", "search")
        for stage, total in (("read", 2), ("encode", 3), ("unheard of", 1)):
            for done in range(1, total + 1):
                display.progress(stage, done, total)
        display.run_ended(DONE)
        display.run_ended(FAILED)


def test_plain_lines_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    work(Display(Console(file=io.StringIO())))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "TS_2: skipped, 3 picks were found before, with other inputs or settings",
        "TS_[1]: 7 picks in 1.3 s",
    ]
    assert err == "Error: TS_3 failed: run TS_3: broken chunk. Mend it\n"


def test_picks_that_are_not_known_yet_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    Display(Console(file=io.StringIO())).run_ended(Outcome(run="TS_4", state="done", seconds=2.04))
    assert capsys.readouterr().out == "TS_4: searched in 2.0 s\n"


def test_bars_on_a_terminal() -> None:
    screen = io.StringIO()
    work(Display(Console(file=screen, force_terminal=True, width=120)))
    shown = screen.getvalue()
    assert "TS_[1]: searching" in shown
    assert "TS_[1]: 7 picks in 1.3 s" in shown
    assert "2/2" in shown
    assert "\x1b[" in shown
