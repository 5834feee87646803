"""Progress of a job: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from copick_cryosam.compute import Listener, Outcome
from copick_cryosam.compute.outcomes import Task

__all__ = ["Display", "EmbeddingDisplay", "TrainingDisplay"]

_TASKS = {
    "seeds": "reading seeds",
    "look": "proposing",
    "search": "searching",
    "embed": "embedding",
    "learn": "reading",
}
_STAGES = {
    "read": "planes read",
    "encode": "blocks or planes encoded",
    "load": "planes of embeddings read",
    "second look": "candidates turned",
    "compete": "candidates compared with averages",
    "segment": "walks segmented",
    "windows": "windows searched",
    "train": "steps",
}


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: RichTask) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f}/s")


class Display(Listener):
    """Shows a job as it goes on. Use it as a context manager.

    On a terminal one bar counts runs and one the steps of the current stage. Elsewhere each run that ended
    gives one line. Failures go to standard error, once each.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._bars = Progress(*columns, console=console) if console.is_terminal else None
        self._runs = self._stage = None if self._bars is None else self._bars.add_task("runs", total=None)
        self._began = time.perf_counter()

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
            self._stage = self._bars.add_task("", total=None, visible=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begun(self, pending: int) -> None:
        if self._bars is not None and self._runs is not None:
            self._bars.update(self._runs, total=pending)

    def run_started(self, run: str, task: Task) -> None:
        if self._bars is not None and self._runs is not None and self._stage is not None:
            self._bars.update(self._runs, description=f"{escape(run)}: {_TASKS[task]}")
            self._bars.update(self._stage, visible=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        if self._bars is None or self._stage is None:
            return
        label = _STAGES.get(stage, stage)
        shown = self._bars.tasks[self._bars.task_ids.index(self._stage)]
        if shown.description != label or not shown.visible:
            self._bars.reset(self._stage, description=label, total=total, visible=True)
        self._bars.update(self._stage, completed=done, total=total)

    def run_ended(self, outcome: Outcome) -> None:
        if outcome.state == "skipped":
            note = ", with other inputs or settings" if outcome.stale else ""
            self._say(f"{outcome.run}: skipped, {outcome.picks} picks were found before{note}")
            return
        self._advance()
        if outcome.error is None:
            # how many picks there are may be known only when all runs were searched
            done = "searched" if outcome.picks is None else f"{outcome.picks} picks"
            self._say(f"{outcome.run}: {done} in {outcome.seconds:.1f} s")
        else:
            # rich redirects both streams above the bars while they are shown.
            click.echo(f"Error: {outcome.run} failed: {' '.join(str(outcome.error).split())}", err=True)

    def _advance(self) -> None:
        if self._bars is not None and self._runs is not None:
            self._bars.advance(self._runs)

    def _say(self, line: str) -> None:
        if self._bars is None:
            click.echo(line)
        else:
            self._bars.console.print(line, markup=False, highlight=False)


class EmbeddingDisplay(Display):
    """The same for a job that embeds and picks nothing."""

    def run_ended(self, outcome: Outcome) -> None:
        if outcome.state == "failed":
            super().run_ended(outcome)
            return
        self._advance()
        was = "embedded" if outcome.state == "done" else "embeddings there already, checked"
        self._say(f"{outcome.run}: {was} in {outcome.seconds:.1f} s")


class TrainingDisplay(Display):
    """The same for a training: tomograms are read, then steps are made.

    Off a terminal every tenth of a stage's steps gives a line, with the time that is left, once a while.
    """

    pause = 5.0
    """Seconds between two lines, at least."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._of: tuple[str, int, float] | None = None
        self._shown, self._tenth = float("-inf"), 0

    def run_ended(self, outcome: Outcome) -> None:
        self._advance()

    def progress(self, stage: str, done: int, total: int) -> None:
        super().progress(stage, done, total)
        if self._bars is not None or stage == "read":
            return
        now = time.perf_counter()
        if self._of is None or self._of[0] != stage:
            # A training that is resumed does not begin at 0.
            self._of, self._tenth = (stage, done, now), 10 * done // total
            return
        _, first, began = self._of
        if 10 * done // total > self._tenth and (now - self._shown >= self.pause or done == total):
            self._shown, self._tenth = now, 10 * done // total
            left = (now - began) / (done - first) * (total - done)
            self._say(f"{_STAGES.get(stage, stage)}: {done} of {total}, about {_duration(left)} left")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
