"""What a report is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from copick_cryosam.diagnosis import SeedDiagnosis
from copick_cryosam.errors import InputError
from copick_cryosam.evaluation import LocalizationScores
from copick_cryosam.types import AngstromPoints, FloatArray, Grid, Instance, Volume, VoxelPoints

__all__ = ["Report", "RunReport"]


@dataclass(frozen=True, eq=False, kw_only=True)
class RunReport:
    """What was found in one tomogram.

    Attributes
    ----------
    run_name : name of the copick run
    volume : shape (Z, Y, X), or a function that returns it; read slab by slab while the report is made
    grid : shape and voxel spacing of `volume`
    instances : the picks with their masks, any order
    radius_angstrom : radius of the object in Å
    color : red, green, blue (and ignored alpha) of the copick object, 0 to 255
    seeds : voxels z, y, x; the seeds in this tomogram, none by default
    truth : Å x, y, z; None where it is not known
    scores, baseline_scores : how the picks and those of the trivial baseline agree with the truth
    threshold : the score from which picks were kept, None where it is not one of the picks' scores
    candidates : shape (N,), how well every proposed point matched, whether it became a pick or not
    candidate_threshold : the match from which candidates were segmented
    notes : remarks on this run
    diagnosis : what the seeds say of each other, one for each of `seeds`; none where it was not made
    """

    run_name: str
    volume: Volume | Callable[[], Volume]
    grid: Grid
    instances: Sequence[Instance]
    radius_angstrom: float
    color: tuple[int, ...] = (0, 158, 115)
    seeds: VoxelPoints = field(default_factory=lambda: VoxelPoints([]))  # type: ignore[arg-type]
    truth: AngstromPoints | None = None
    scores: LocalizationScores | None = None
    baseline_scores: LocalizationScores | None = None
    threshold: float | None = None
    candidates: FloatArray | None = None
    candidate_threshold: float | None = None
    notes: Sequence[str] = ()
    diagnosis: Sequence[SeedDiagnosis] = ()

    def __post_init__(self) -> None:
        if not self.radius_angstrom > 0:
            found = self.radius_angstrom
            raise InputError(f"radius: expected a positive number of Å, found {found}", hint="Set the object's radius")
        if self.diagnosis and len(self.diagnosis) != len(self.seeds):
            raise ValueError(
                f"diagnosis: expected one for each of {len(self.seeds)} seeds, found {len(self.diagnosis)}"
            )
        if len(self.color) < 3 or not all(0 <= part <= 255 for part in self.color):
            raise InputError(f"color: expected 3 numbers from 0 to 255, found {self.color}", hint="Set the color")

    @property
    def radius_vox(self) -> float:
        return self.radius_angstrom / self.grid.voxel_spacing

    def load(self) -> Volume:
        """The volume, opened if it was given as a function."""
        return self.volume() if callable(self.volume) else self.volume


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """A report over one or more tomograms.

    Attributes
    ----------
    parameters : all settings; nested mappings are shown with dotted names
    versions : versions of the software, and the SHA-256 of weights, by name
    command : the command line that reproduces the result
    warnings : what the reader has to know before trusting the figures
    """

    title: str
    runs: Sequence[RunReport]
    parameters: Mapping[str, object]
    versions: Mapping[str, object]
    command: str
    warnings: Sequence[str] = ()
