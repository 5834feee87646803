"""Writing what a detector found in a run: picks of each class and a multilabel segmentation, under one record."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import InputError
from copick_cryosam.io.job import same_spacing
from copick_cryosam.io.project import Project
from copick_cryosam.io.sasi_job import DetectionJob
from copick_cryosam.io.storage import storage_errors
from copick_cryosam.io.writing_sets import PicksSet, SeveralWriter
from copick_cryosam.types import Grid

__all__ = ["DetectionsWriter"]


class DetectionsWriter(SeveralWriter):
    """`Writer` for a detector: a set of picks for each of its classes, empty ones too, and a segmentation of all.

    Parameters
    ----------
    objects : names of the classes, numbered from 1 in this order
    """

    outputs_form = "user/session"

    def __init__(self, project: Project, job: DetectionJob, objects: tuple[str, ...]) -> None:
        super().__init__(project, job)
        self.detections, self.objects = job, objects

    def labels(self) -> NDArray[np.unsignedinteger[Any]]:
        """The voxel value of each class in the segmentation, background first; as small a type as holds them.

        Raises
        ------
        NotFoundError
            The project lacks one of the objects.
        InputError
            One has no label of its own.
        """
        values = [0, *(self.project.object(name).label for name in self.objects)]
        for index, name in enumerate(self.objects, start=1):
            if values[index] <= 0 or values[index] in values[:index]:
                raise InputError(
                    f"object {name}: expected a label of its own above 0, found {values[index]}",
                    hint="Set label in the config",
                )
        return np.array(values, dtype=np.min_scalar_type(max(values)))

    def write_detections(
        self,
        run: str,
        picks: Mapping[str, PicksSet],
        classes: NDArray[np.uint8],
        grid: Grid,
        parameters: Mapping[str, Any],
    ) -> str:
        """Write one run's results, the completion record last; earlier ones of the same job are replaced.

        Parameters
        ----------
        picks : by object; every object of the model is there
        classes : number of each voxel's class, 0 for background; shape `grid.shape_zyx`
        grid : the tomogram's
        parameters : everything that decided the result; JSON types

        Returns
        -------
        The path of the completion record in the overlay.

        Raises
        ------
        OutputError
            See `Writer.state`; finished results exist and overwriting was not asked for; or the storage fails.
            Whatever was written by then is removed, as it is on any other exception.
        """
        self._refuse_finished(run, parameters)
        outputs = self._output_names(grid)
        writing = {
            name: partial(self._write_set, run, self.detections.set_of(one), picks[one], grid)
            for name, one in zip(outputs[:-1], self.objects, strict=True)
        }
        values = self.labels()[classes]
        writing[outputs[-1]] = partial(
            self._write_masks, run, self.detections.output_segmentation, values, grid, is_multilabel=True
        )
        replaced = set(self._stored(run)) & set(outputs)
        count = sum(len(one.points) for one in picks.values())
        try:
            return self._commit(run, writing, replaced, count, grid, parameters)
        except storage_errors() as error:
            raise self._failed(run, error) from None

    def _objects(self) -> tuple[str, ...]:
        self.labels()
        return self.objects

    def _output_names(self, grid: Grid) -> list[str]:
        to = self.detections.output_segmentation
        masks = f"multilabel {to.name}:{to.user_id}/{to.session_id}@{grid.voxel_spacing:.3f}"
        return [*(f"picks {self.detections.set_of(name)}" for name in self.objects), masks]

    def _stored(self, run: str) -> dict[str, Any]:
        to = self.detections.output_segmentation
        spacing = to.voxel_spacing or self.job.tomogram.voxel_spacing
        sets = {f"picks {self.detections.set_of(name)}" for name in self.objects}
        return {
            name: each
            for name, each in self._listing(run).items()
            if name in sets
            or (
                name.startswith(f"multilabel {to.name}:{to.user_id}/{to.session_id}@")
                and (spacing is None or same_spacing(each.voxel_size, spacing))
            )
        }

    def _path(self, run: str, which: str) -> str:
        # Without an object in its name it is no other job's record: names hold no underscores.
        ending = {"record": "json", "marker": "started"}[which]
        folder = super()._path(run, which).rsplit("/", 1)[0]
        return f"{folder}/{self.detections.user_id}_{self.detections.session_id}.{ending}"
