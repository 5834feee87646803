"""What became of the runs, and who is told while they are worked on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from copick_cryosam.errors import CryosamError
from copick_cryosam.types import Grid, VoxelPoints

if TYPE_CHECKING:
    from copick_cryosam.diagnosis import SeedDiagnosis
    from copick_cryosam.findings import Found

__all__ = ["AverageOutcome", "Listener", "Outcome", "Search", "Summary", "Task"]

Task = Literal["seeds", "look", "search", "embed", "learn"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """What searching one run gave, while it is still in memory.

    Attributes
    ----------
    found : the picks and the proposals behind them
    grid : of the tomogram
    seeds : the seeds in this run, voxels z, y, x; none where it has none
    radius : of the object in Å
    models : signatures of encoder and segmenter
    diagnosis : of each of the seeds
    """

    found: Found
    grid: Grid
    seeds: VoxelPoints
    radius: float
    models: Mapping[str, str]
    diagnosis: Sequence[SeedDiagnosis] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What became of one run.

    Attributes
    ----------
    picks : how many were written, now or before; None for a failed run, and before that is known
    seconds : wall-clock time spent on the run; 0 for a skipped one
    stale : skipped, but its results were made with other settings or seeds
    error : why it failed
    search : given to the listener only, as it holds the masks of all picks
    """

    run: str
    state: Literal["done", "skipped", "failed"]
    picks: int | None = None
    seconds: float = 0.0
    stale: bool = False
    error: CryosamError | None = None
    search: Search | None = None


@dataclass(frozen=True, kw_only=True)
class AverageOutcome:
    """The average of the picks of a call.

    Attributes
    ----------
    path : of the map
    particles : averaged
    resolution : Å, where the halves' correlation falls below 0.143; NaN where there is one particle only
    error : why there is none
    """

    path: str
    particles: int = 0
    resolution: float = float("nan")
    error: CryosamError | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """What became of a job.

    Attributes
    ----------
    outcomes : one for each run that was to be searched, in the order asked for
    overlay : where the results lie
    polarity : how particles look in these tomograms, dark or light; None where every run was skipped
    seed_failures : why seeds or negatives could not be used, by runs that were not to be searched themselves
    seed_remarks : a line on every seed that does not agree with the others or has no mask
    average : what became of the average; None where none was asked for
    """

    outcomes: tuple[Outcome, ...]
    overlay: str
    polarity: str | None = None
    seed_failures: Mapping[str, CryosamError] = field(default_factory=dict)
    seed_remarks: tuple[str, ...] = ()
    average: AverageOutcome | None = None

    def runs(self, state: Literal["done", "skipped", "failed"]) -> tuple[str, ...]:
        """Names of the runs that ended so."""
        return tuple(one.run for one in self.outcomes if one.state == state)

    @property
    def stale(self) -> tuple[str, ...]:
        """Names of skipped runs whose results were made with other settings or seeds."""
        return tuple(one.run for one in self.outcomes if one.stale)

    @property
    def succeeded(self) -> bool:
        """Whether every run is done or was before, with every seed used."""
        averaged = self.average is None or self.average.error is None
        return averaged and not self.runs("failed") and not self.seed_failures


class Listener:
    """Told of the work as it goes on. Subclass it and override what is of interest; by default nothing happens."""

    def begun(self, pending: int) -> None:
        """So many runs will be searched."""

    def run_started(self, run: str, task: Task) -> None:
        """Work on a run starts: its seeds are read, its candidates are looked at, it is searched or embedded, or
        read to learn from.
        """

    def progress(self, stage: str, done: int, total: int) -> None:
        """See `copick_cryosam.types.Progress`; the stages of the run that was started last."""

    def run_ended(self, outcome: Outcome) -> None:
        """A run is done, was skipped or has failed; once for each run that was to be searched."""
