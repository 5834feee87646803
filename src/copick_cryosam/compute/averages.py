"""The average of the picks of all runs of a call, and its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from copick_cryosam.compute.outcomes import AverageOutcome
from copick_cryosam.config import Settings
from copick_cryosam.errors import CryosamError, InputError
from copick_cryosam.io.job import Job

if TYPE_CHECKING:
    from copick_cryosam.averaging import Particles

__all__ = ["PER_RUN", "Averages"]

PER_RUN = 200
"""At most so many picks of a run are averaged; their boxes stay in memory until the end."""


class Averages:
    """Gathers the particles of a job that asks for an average.

    Raises
    ------
    InputError, OutputError
        There is no second look to orient the picks, or the file cannot be written.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self._path, self._overwrite = job.output_average, job.overwrite
        self._parts: list[Particles] = []
        self._sampling = (0.0, 0.0)
        if self._path is None:
            return
        from copick_cryosam.io.maps import check_maps

        if not settings.looks_again:
            raise InputError(
                "--output-average: expected picks with orientations, found no second look in these settings",
                hint="Use --preset embedded, without --no-second-look",
            )
        check_maps(self._path, overwrite=self._overwrite)

    @property
    def boxes(self) -> int:
        """How many particles of a run are wanted."""
        return 0 if self._path is None else PER_RUN

    def add(self, particles: Particles | None, voxel_spacing: float, radius_vox: float) -> None:
        """The particles of a run."""
        if particles is not None:
            self._parts.append(particles)
            self._sampling = (voxel_spacing, radius_vox)

    def write(self) -> AverageOutcome | None:
        """Average and write; None where none was asked for."""
        if self._path is None:
            return None
        if not self._parts:
            error = InputError(
                f"average {self._path}: expected a run that is searched in this call, found none",
                hint="Search finished runs again with --overwrite",
            )
            return AverageOutcome(path=self._path, error=error)
        from copick_cryosam.averaging import average_of
        from copick_cryosam.io.maps import write_maps

        try:
            made = average_of(self._parts, *self._sampling)
            write_maps(made, self._path, overwrite=self._overwrite)
        except CryosamError as error:
            return AverageOutcome(path=self._path, error=error)
        return AverageOutcome(path=self._path, particles=made.count, resolution=made.resolution_0143)
