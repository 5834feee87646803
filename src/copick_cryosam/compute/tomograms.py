"""The tomograms of a job, of which one at most is open with its features: two at once may not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from copick_cryosam.compute.embeddings import TomogramEmbeddings
from copick_cryosam.errors import InputError
from copick_cryosam.io.job import Job, same_spacing
from copick_cryosam.io.volume import TomogramVolume
from copick_cryosam.types import Grid, Progress, VoxelPoints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from copick_cryosam.findings import Tomogram
    from copick_cryosam.io.project import Project
    from copick_cryosam.pipeline import CryoSAM

__all__ = ["OpenTomogram", "Tomograms"]


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenTomogram:
    """A run's tomogram, encoded."""

    run: str
    tomogram: Tomogram
    grid: Grid


class Tomograms:
    """Opens the tomograms of a job's runs, one after the other.

    Who asks for one must not keep it while asking for the next.

    Parameters
    ----------
    radius : of the object, Å
    """

    def __init__(self, job: Job, project: Project, model: CryoSAM, radius: float, progress: Progress) -> None:
        self.job, self.project, self.model, self.radius, self.progress = job, project, model, radius, progress
        self._first: tuple[str, float] | None = None
        self._opened: OpenTomogram | None = None

    @property
    def voxel_spacing(self) -> float:
        """Å, of all tomograms, once one of them has set it."""
        assert self._first is not None
        return self._first[1]

    def hold_to(self, run: str, voxel_spacing: float) -> None:
        """The first that asks sets the voxel spacing, in Å, which all others must have."""
        self._first = self._first or (run, voxel_spacing)

    def is_open(self, run: str) -> bool:
        """Whether it is the one that is open."""
        return self._opened is not None and self._opened.run == run

    def open_first(self, runs: Sequence[str]) -> list[str]:
        """The runs in their order, but the one that is open first, so that it is not encoded twice."""
        return sorted(runs, key=lambda run: not self.is_open(run))

    def close(self) -> None:
        """Give the memory back."""
        self._opened = None

    def unread(self, run: str) -> TomogramVolume:
        """The run's tomogram on disk.

        Raises
        ------
        InputError
            Its voxel spacing is not that of the first: masks would not compare in size.
        """
        volume = self.project.tomogram(run, self.job.tomogram)
        spacing = volume.grid.voxel_spacing
        if self._first is not None and not same_spacing(spacing, self._first[1]):
            first, expected = self._first
            raise InputError(
                f"run {run}: expected the voxel spacing {expected} of run {first}, found {spacing}",
                hint=f"Give the spacing with -t {self.job.tomogram.tomo_type}@{expected}",
            )
        return volume

    def opened(self, run: str, volume: TomogramVolume, polarity: str | None) -> OpenTomogram:
        """The run's tomogram, encoded now where it is not open."""
        if not self.is_open(run):
            self.open(run, volume, None, polarity)
        assert self._opened is not None
        return self._opened

    def open(self, run: str, volume: TomogramVolume, seeds: VoxelPoints | None, polarity: str | None) -> OpenTomogram:
        """Read and encode a tomogram.

        Parameters
        ----------
        volume : of `unread`
        seeds : that the polarity is read off, where it is None
        """
        self.close()
        data = volume.read(partial(self.progress, "read"))
        spacing = volume.grid.voxel_spacing
        tomogram = self.model.open(
            data,
            seeds,
            self.radius / spacing,
            polarity=polarity,
            voxel_spacing=spacing,
            progress=self.progress,
            stored=TomogramEmbeddings(
                self.project,
                run,
                self.job.tomogram,
                data,
                volume.grid,
                self.model.encoder,
                self.model.device,
                reuse=self.job.reuse_embeddings,
                keep=self.job.keep_embeddings,
                progress=self.progress,
            ),
        )
        self._opened = OpenTomogram(run=run, tomogram=tomogram, grid=volume.grid)
        return self._opened

    def without_features(self, run: str, polarity: str) -> tuple[NDArray[np.float32], Grid]:
        """A run's tomogram as it is searched, where its features are no longer needed; none is open after that."""
        if self._opened is not None and self.is_open(run):
            volume, grid = self._opened.tomogram.volume, self._opened.grid
            self.close()
            return volume, grid
        self.close()
        found = self.unread(run)
        data = found.read(partial(self.progress, "read"))
        return self.model.prepare(data, self.radius / found.grid.voxel_spacing, polarity), found.grid
