"""Writing results: the only code of the package that changes a project.

A run's results are scored picks, an instance segmentation and a binary one (copick keeps the two apart
by type, so they share name, user and session). They count as finished only when a completion record
stands beside them, which is written last. Before the first byte a `started` marker names what will be
written; so what a killed run left can be told from what somebody else made, which is never touched
unless overwriting was asked for. Record and marker lie in the overlay, in
``ExperimentRuns/<run>/CryoSAM/``, a folder that copick does not list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import OutputError
from copick_cryosam.io.discover_job import DiscoverJob
from copick_cryosam.io.job import Job, SegmentationUri, same_spacing
from copick_cryosam.io.project import Project
from copick_cryosam.io.record import OutputState, is_known, is_of, outputs_of, record_of
from copick_cryosam.io.sasi_job import DetectionJob
from copick_cryosam.io.storage import delete_file, read_json, reason, storage_errors, try_writing, write_json
from copick_cryosam.types import AngstromPoints, Grid, Instance, centroids, paint

FOLDER = "CryoSAM"


class Writer:
    """Writes the results of one job.

    At most one writer may work on a run's outputs at a time: a second one would take the first one's
    marker for that of a killed run.
    """

    outputs_form = "object:user/session"
    """How the place of the outputs is written on the command line, for hints."""

    def __init__(self, project: Project, job: Job | DiscoverJob | DetectionJob) -> None:
        self.project = project
        self.job = job

    def check(self, runs: Sequence[str]) -> None:
        """Refuse now what could only fail after the work; nothing is left behind.

        Raises
        ------
        OutputError
            The overlay cannot be written, or outputs exist that this method must not replace (see `state`).
        NotFoundError
            The output's object is not in the project.
        """
        for name in self._objects():
            self.project.object(name)
        for run in runs:
            self.state(run, {})
        for run in runs[:1]:
            place = self.project.run(run)
            try:
                try_writing(place.fs_overlay, f"{place.overlay_path}/{FOLDER}")
            except storage_errors() as error:
                raise OutputError(
                    f"overlay {self.project.root.root_overlay}: expected a place that can be written, "
                    f"found: {reason(error)}",
                    hint="Set overlay_root in the config to a folder of yours",
                ) from None

    def state(self, run: str, parameters: Mapping[str, Any]) -> OutputState:
        """What is there of a run's results, compared with `parameters` (JSON types).

        Raises
        ------
        OutputError
            Outputs of that name are part of the read-only data, or were not written by CryoSAM and
            overwriting was not asked for.
        """
        stored = self._stored(run)
        fixed = [name for name, each in stored.items() if each.read_only]
        if fixed:
            raise OutputError(
                f"run {run}: expected no output yet, found {fixed[0]} in the read-only part of the project",
                hint=f"Write to another session with -o {self.outputs_form}",
            )
        record, marker = self._read(run, "record"), self._read(run, "marker")
        own = {*outputs_of(record), *outputs_of(marker)}
        foreign = [name for name in stored if name not in own]
        if foreign and not self.job.overwrite:
            raise OutputError(
                f"run {run}: expected no output yet, found {foreign[0]}, which CryoSAM did not write",
                hint=f"Write to another session with -o {self.outputs_form}, or replace it with --overwrite",
            )
        # The record is removed before anything it stands for, so it is true even beside a marker.
        if record is not None and self._complete(run, record):
            same = is_of(record, self._parameters(parameters))
            return OutputState.FINISHED if same else OutputState.STALE
        return OutputState.INTERRUPTED if record is not None or marker is not None else OutputState.ABSENT

    def clean(self, run: str) -> None:
        """Remove what a killed run left; finished results and data of others stay.

        Raises
        ------
        OutputError
            See `state`; or the storage fails.
        """
        if self.state(run, {}) is not OutputState.INTERRUPTED:
            return
        own = {*outputs_of(self._read(run, "record")), *outputs_of(self._read(run, "marker"))}
        try:
            self._remove(run, own)
        except storage_errors() as error:
            raise self._failed(run, error) from None

    def write(self, run: str, instances: Sequence[Instance], grid: Grid, parameters: Mapping[str, Any]) -> str:
        """Write one run's results, the completion record last; earlier results of the same job are replaced.

        Parameters
        ----------
        instances : written best score first; the n-th has pick id and label n. Where masks overlap the better
            one keeps the voxel. None at all gives empty outputs.
        grid : the tomogram's
        parameters : everything that decided the result; JSON types

        Returns
        -------
        The path of the completion record in the overlay.

        Raises
        ------
        OutputError
            See `state`; finished results exist and overwriting was not asked for; the segmentation's voxel
            spacing is not the tomogram's; or the storage fails. Whatever was written by then is removed, as it
            is on any other exception, KeyboardInterrupt included.
        """
        self._refuse_finished(run, parameters)
        masks = self.job.output_segmentation
        asked = None if masks is None else masks.voxel_spacing
        if asked is not None and not same_spacing(asked, grid.voxel_spacing):
            raise OutputError(
                f"output segmentation {masks}: expected the tomogram's voxel spacing {grid.voxel_spacing}",
                hint="Masks are written on the tomogram's grid; leave the spacing out",
            )
        ordered = sorted(instances, key=lambda one: -one.score)
        positions = grid.to_angstrom(centroids(ordered))
        scores = np.array([one.score for one in ordered], dtype=np.float64)
        if not (np.isfinite(positions.xyz).all() and np.isfinite(scores).all()):
            raise OutputError(
                f"run {run}: expected finite positions and scores, found NaN or infinity",
                hint="Run again with --debug and report it",
            )
        try:
            return self._write(run, ordered, positions, scores, grid, parameters)
        except storage_errors() as error:
            raise self._failed(run, error) from None

    def _refuse_finished(self, run: str, parameters: Mapping[str, Any]) -> None:
        if self.state(run, parameters).done and not self.job.overwrite:
            raise OutputError(
                f"run {run}: expected no output yet, found finished results at {self.job.output}",
                hint="Replace them with --overwrite, or write to another session",
            )

    def record(self, run: str) -> dict[str, Any] | None:
        """The completion record of a run; None where there is none or it is damaged."""
        return self._read(run, "record")

    def _write(
        self,
        run: str,
        instances: Sequence[Instance],
        positions: AngstromPoints,
        scores: NDArray[np.float64],
        grid: Grid,
        parameters: Mapping[str, Any],
    ) -> str:
        outputs = self._output_names(grid)
        writing = {outputs[0]: lambda: self._write_picks(run, instances, positions, scores, grid)}
        to = self.job.output_segmentation
        if to is not None:
            labels = paint(grid.shape_zyx, instances)
            binary = (labels > 0).astype(np.uint8)
            writing[outputs[1]] = lambda: self._write_masks(run, to, labels, grid, is_instance=True)
            writing[outputs[2]] = lambda: self._write_masks(run, to, binary, grid)
        replaced = set(self._stored(run)) & set(outputs)
        return self._commit(run, writing, replaced, len(instances), grid, parameters)

    def _commit(
        self,
        run: str,
        writing: Mapping[str, Callable[[], str]],
        replaced: Iterable[str],
        picks: int,
        grid: Grid,
        parameters: Mapping[str, Any],
    ) -> str:
        """Write a run's outputs, all or none, and the completion record last; returns the record's path.

        Parameters
        ----------
        writing : by the name of each output, what writes it and returns its digest
        replaced : names of outputs that are removed first, beside those of an earlier record or marker
        """
        fs = self.project.run(run).fs_overlay
        before = {*replaced, *outputs_of(self._read(run, "record")), *outputs_of(self._read(run, "marker"))}
        complete = False
        try:
            write_json(fs, self._path(run, "marker"), {"outputs": sorted({*writing, *before})})
            self._remove(run, before, keep_marker=True)
            digests = {name: write() for name, write in writing.items()}
            self._write_record(run, record_of(run, digests, picks, grid, self._parameters(parameters)))
            complete = True
        finally:
            if not complete:
                self._remove(run, list(writing))
        delete_file(fs, self._path(run, "marker"))
        return self._path(run, "record")

    def _write_picks(
        self,
        run: str,
        instances: Sequence[Instance],
        positions: AngstromPoints,
        scores: NDArray[np.float64],
        grid: Grid,
    ) -> str:
        place, to = self.project.run(run), self.job.output
        picks = place.new_picks(to.object_name, to.session_id, to.user_id)
        # copick fills these in only when it loads picks; storing without them would erase the run's name.
        picks.meta.run_name = run
        picks.meta.voxel_spacing = grid.voxel_spacing
        turned = transformations(instances)
        picks.meta.trust_orientation = turned is not None
        picks.from_numpy(positions.xyz, turned, instance_ids=np.arange(1, len(positions) + 1), scores=scores)
        return hashlib.sha256(place.fs_overlay.cat_file(picks.path)).hexdigest()

    def _write_masks(self, run: str, to: SegmentationUri, data: NDArray[Any], grid: Grid, **kind: bool) -> str:
        """A segmentation; `kind` is copick's ``is_instance`` or ``is_multilabel``, binary without."""
        masks = self.project.run(run).new_segmentation(
            float(grid.voxel_spacing), to.name, to.session_id, user_id=to.user_id, **kind
        )
        try:
            masks.from_numpy(data, dtype=data.dtype)
        except KeyError as error:
            # zarr's file store reports a failed write as a missing key.
            raise OSError(reason(error.__cause__ or error)) from None
        return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()

    def _write_record(self, run: str, content: dict[str, Any]) -> None:
        write_json(self.project.run(run).fs_overlay, self._path(run, "record"), content)

    def _parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {"job": self.job.identity(), **parameters}

    def _objects(self) -> tuple[str, ...]:
        """The objects that the outputs belong to."""
        masks = self.job.output_segmentation
        return (self.job.output.object_name, *(() if masks is None else (masks.name,)))

    def _output_names(self, grid: Grid) -> list[str]:
        names = [f"picks {self.job.output}"]
        to = self.job.output_segmentation
        if to is not None:
            spacing = f"{grid.voxel_spacing:.3f}"
            names += [f"{kind} {to.name}:{to.user_id}/{to.session_id}@{spacing}" for kind in ("instance", "binary")]
        return names

    def _listing(self, run: str) -> dict[str, Any]:
        """All picks and segmentations of a run by the names used here; the read-only one where both parts have it."""
        place = self.project.run(run)
        try:
            place.refresh_picks()
            place.refresh_segmentations()
        except storage_errors() as error:
            raise self._failed(run, error) from None
        found: dict[str, Any] = {}
        for each in place.picks:
            found.setdefault(f"picks {each.pickable_object_name}:{each.user_id}/{each.session_id}", each)
        for each in place.segmentations:
            where = f"{each.name}:{each.user_id}/{each.session_id}@{each.voxel_size:.3f}"
            found.setdefault(f"{each.segmentation_type} {where}", each)
        return found

    def _stored(self, run: str) -> dict[str, Any]:
        """What lies where this job writes; segmentations at any spacing that may be meant."""
        to, masks = self.job.output, self.job.output_segmentation
        here = {}
        for name, each in self._listing(run).items():
            kind = name.split(" ", 1)[0]
            if kind == "picks":
                if (each.pickable_object_name, each.user_id, each.session_id) == (
                    to.object_name,
                    to.user_id,
                    to.session_id,
                ):
                    here[name] = each
            elif masks is not None and kind in ("instance", "binary"):
                spacing = masks.voxel_spacing or self.job.tomogram.voxel_spacing
                if (each.name, each.user_id, each.session_id) == (masks.name, masks.user_id, masks.session_id) and (
                    spacing is None or same_spacing(each.voxel_size, spacing)
                ):
                    here[name] = each
        return here

    def _complete(self, run: str, record: Mapping[str, Any]) -> bool:
        """Whether everything that the record names is still there; users delete picks in viewers."""
        return bool(outputs_of(record)) and set(outputs_of(record)) <= set(self._listing(run))

    def _remove(self, run: str, names: set[str] | Sequence[str], *, keep_marker: bool = False) -> None:
        """Delete outputs in the overlay, the record first, so that nothing partial is ever taken for complete."""
        fs = self.project.run(run).fs_overlay
        delete_file(fs, self._path(run, "record"))
        for name, each in self._listing(run).items():
            if name in names and not each.read_only:
                each.delete()
        if not keep_marker:
            delete_file(fs, self._path(run, "marker"))

    def _path(self, run: str, which: str) -> str:
        to = self.job.output
        ending = {"record": "json", "marker": "started"}[which]
        folder = f"{self.project.run(run).overlay_path}/{FOLDER}"
        return f"{folder}/{to.user_id}_{to.session_id}_{to.object_name}.{ending}"

    def _read(self, run: str, which: str) -> dict[str, Any] | None:
        fs, path = self.project.run(run).fs_overlay, self._path(run, which)
        try:
            content = read_json(fs, path)
            if content is None and which == "marker" and fs.exists(path):
                # Killed while the marker itself was written: nothing had been written yet.
                return {"outputs": []}
        except storage_errors() as error:
            raise self._failed(run, error) from None
        if which == "record" and content is not None and not is_known(content):
            return None
        return content

    def _failed(self, run: str, error: BaseException) -> OutputError:
        return OutputError(
            f"run {run}: expected storage that works, found: {reason(error)}",
            hint="Free space or check the connection, then run again; finished runs are skipped",
        )


def transformations(instances: Sequence[Instance]) -> NDArray[np.float64] | None:
    """Rotations from the reference to each particle as copick stores them: (N, 4, 4), acting on (x, y, z) columns.

    None where one of the instances, or all, have no pose; the translations are zero, as positions are exact.
    """
    poses = [one.pose for one in instances if one.pose is not None]
    if not poses or len(poses) < len(instances):
        return None
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = [pose.rotation_xyz for pose in poses]
    return matrices
