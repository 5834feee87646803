"""Results appear whole with a record, or not at all; nothing of others is touched."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from copick_cryosam.errors import NotFoundError, OutputError
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import open_project
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import Grid, Instance, Pose, paint

GRID = Grid((20, 33, 47), 10.0)
PARAMETERS = {"settings": {"preset": "fake", "threshold": 0.5}}
RECORD = "overlay/ExperimentRuns/TS_001/CryoSAM/cryosam_1_ribosome.json"
MARKER = "overlay/ExperimentRuns/TS_001/CryoSAM/cryosam_1_ribosome.started"


def instance(origin: tuple[int, int, int], score: float, side: int = 3) -> Instance:
    z, y, x = (float(o + (side - 1) / 2) for o in origin)
    return Instance(
        mask=np.ones((side, side, side), dtype=bool),
        origin_zyx=origin,
        prompt_zyx=(z, y, x),
        similarity=score,
        confidence=1.0,
        score=score,
    )


TWO = [instance((0, 0, 0), 0.25), instance((17, 30, 44), 0.75)]


def writer_for(disk: Any, **given: Any) -> Writer:
    asked = {"config": str(disk.config), "tomogram": "wbp@10.0", "seeds": "ribosome:curator/1", **given}
    return Writer(open_project(disk.config), Job.create(**asked))


@pytest.fixture
def disk(project_on_disk: Any) -> Any:
    project_on_disk.add_tomogram("TS_001")
    return project_on_disk


def test_writes_picks_masks_and_record(disk: Any) -> None:
    writer = writer_for(disk)
    assert writer.state("TS_001", PARAMETERS) is OutputState.ABSENT
    path = writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert Path(path) == disk.folder / RECORD
    assert not (disk.folder / MARKER).exists()

    run = disk.root().get_run("TS_001")
    (picks,) = run.get_picks("ribosome", "cryosam", "1")
    # Best score first, x y z in Å, at the centroids on the far and the near corner.
    np.testing.assert_allclose(picks.full_positions(), [[450, 310, 180], [10, 10, 10]])
    np.testing.assert_allclose(picks.scores(), [0.75, 0.25])
    np.testing.assert_array_equal(picks.instance_ids(), [1, 2])
    assert picks.meta.run_name == "TS_001"
    assert picks.meta.voxel_spacing == 10.0
    assert picks.meta.trust_orientation is False

    (labels,) = run.get_segmentations(user_id="cryosam", voxel_size=10.0, is_instance=True)
    (binary,) = run.get_segmentations(user_id="cryosam", voxel_size=10.0)
    painted = labels.numpy()
    assert painted.dtype == np.uint16
    assert painted.shape == GRID.shape_zyx
    assert (painted[17:, 30:, 44:] == 1).all()
    assert (painted[:3, :3, :3] == 2).all()
    assert int((painted > 0).sum()) == 54
    assert binary.numpy().dtype == np.uint8
    np.testing.assert_array_equal(binary.numpy(), painted > 0)
    assert (labels.session_id, labels.name) == (binary.session_id, binary.name) == ("1", "ribosome")

    record = json.loads((disk.folder / RECORD).read_text(encoding="utf-8"))
    assert record["counts"] == {"picks": 2}
    assert record["parameters"]["settings"] == PARAMETERS["settings"]
    assert record["parameters"]["job"]["seeds"] == "ribosome:curator/1"
    assert record["versions"]["copick"]
    stored = (disk.overlay / "ExperimentRuns/TS_001/Picks/cryosam_1_ribosome.json").read_bytes()
    assert record["sha256"]["picks ribosome:cryosam/1"] == hashlib.sha256(stored).hexdigest()


def test_orientations_are_written_where_every_pick_has_one(disk: Any) -> None:
    # acting on (z, y, x) columns: a quarter turn around z that takes x to y, and any other
    quarter = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float)
    some = Rotation.random(random_state=0).as_matrix()
    posed = [
        replace(one, pose=Pose(rotation=rotation, centre_zyx=one.centroid_zyx))
        for one, rotation in zip(TWO, (some, quarter), strict=True)
    ]
    writer = writer_for(disk, overwrite=True)
    writer.write("TS_001", posed, GRID, PARAMETERS)
    (picks,) = disk.root().get_run("TS_001").get_picks("ribosome", "cryosam", "1")
    # best score first
    best, second = (np.asarray(point.transformation) for point in picks.points)
    assert picks.meta.trust_orientation is True
    np.testing.assert_allclose(best[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(second[:3, :3], some[::-1, ::-1])
    for matrix in (best, second):
        np.testing.assert_array_equal(matrix[:3, 3], 0)
        np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])
    np.testing.assert_allclose(picks.full_positions(), [[450, 310, 180], [10, 10, 10]])

    writer.write("TS_001", [posed[0], TWO[1]], GRID, PARAMETERS)
    (picks,) = disk.root().get_run("TS_001").get_picks("ribosome", "cryosam", "1")
    np.testing.assert_array_equal([point.transformation for point in picks.points], [np.eye(4)] * 2)
    assert picks.meta.trust_orientation is False


def test_copick_does_not_list_the_record_s_folder(disk: Any) -> None:
    writer_for(disk).write("TS_001", TWO, GRID, PARAMETERS)
    root = disk.root()
    assert [run.name for run in root.runs] == ["TS_001"]
    run = root.runs[0]
    assert [spacing.voxel_size for spacing in run.voxel_spacings] == [10.0]
    assert len(run.picks) == 1
    assert len(run.segmentations) == 2
    assert run.meshes == run.filaments == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 32), st.integers(0, 46)), max_size=4, unique=True))
def test_every_pick_rounds_to_the_voxel_with_its_own_label(disk: Any, voxels: list[tuple[int, int, int]]) -> None:
    scores = np.linspace(1, 0.5, len(voxels))
    writer_for(disk, overwrite=True).write(
        "TS_001", [instance(at, float(s), side=1) for at, s in zip(voxels, scores, strict=True)], GRID, PARAMETERS
    )
    run = disk.root().get_run("TS_001")
    picks = run.get_picks("ribosome", "cryosam", "1")[0]
    labels = run.get_segmentations(user_id="cryosam", is_instance=True)[0].numpy()
    index = np.rint(picks.full_positions()[:, ::-1] / 10.0).astype(int)
    np.testing.assert_array_equal(index, np.array(voxels).reshape(-1, 3))
    np.testing.assert_array_equal(labels[tuple(index.T)], picks.instance_ids())


def test_nothing_found_is_written_as_empty_outputs(disk: Any) -> None:
    writer = writer_for(disk)
    writer.write("TS_001", [], GRID, PARAMETERS)
    run = disk.root().get_run("TS_001")
    assert run.get_picks("ribosome", "cryosam", "1")[0].points == []
    assert not run.get_segmentations(is_instance=True)[0].numpy().any()
    assert not run.get_segmentations()[0].numpy().any()
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED


def test_points_only(disk: Any) -> None:
    writer = writer_for(disk, points_only=True)
    writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert disk.root().get_run("TS_001").segmentations == []
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED
    assert writer_for(disk).state("TS_001", PARAMETERS) is OutputState.STALE


def test_labels_beyond_uint16() -> None:
    many = [instance((0, n // 300, n % 300), 1.0, side=1) for n in range(66_000)]
    labels = paint((1, 220, 300), many)
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels.ravel(), np.arange(1, 66_001))


def test_finished_is_not_replaced_unless_asked(disk: Any) -> None:
    writer_for(disk).write("TS_001", TWO, GRID, PARAMETERS)
    again = writer_for(disk)
    assert again.state("TS_001", PARAMETERS) is OutputState.FINISHED
    assert again.state("TS_001", {"settings": {}}) is OutputState.STALE
    assert OutputState.STALE.done
    again.check(["TS_001"])
    again.clean("TS_001")
    before = disk.files()
    with pytest.raises(OutputError, match="finished results"):
        again.write("TS_001", [], GRID, PARAMETERS)
    assert disk.files() == before
    writer_for(disk, overwrite=True).write("TS_001", TWO[:1], GRID, PARAMETERS)
    run = disk.root().get_run("TS_001")
    assert len(run.get_picks("ribosome", "cryosam", "1")[0].points) == 1
    assert run.get_segmentations(is_instance=True)[0].numpy().max() == 1


@pytest.mark.parametrize("lost", ["picks", "masks", "record", "damaged record"])
def test_outputs_count_only_when_record_and_data_are_there(disk: Any, lost: str) -> None:
    writer_for(disk).write("TS_001", TWO, GRID, PARAMETERS)
    run = disk.root().get_run("TS_001")
    if lost == "picks":
        run.get_picks("ribosome", "cryosam", "1")[0].delete()
    elif lost == "masks":
        run.get_segmentations(is_instance=True)[0].delete()
    elif lost == "record":
        (disk.folder / RECORD).unlink()
    else:
        (disk.folder / RECORD).write_text('{"format": 1, "outputs', encoding="utf-8")
    writer = writer_for(disk)
    if "record" in lost:
        # Without a record nobody can tell these picks from a person's.
        with pytest.raises(OutputError, match="which CryoSAM did not write"):
            writer.state("TS_001", PARAMETERS)
        return
    assert writer.state("TS_001", PARAMETERS) is OutputState.INTERRUPTED
    writer.clean("TS_001")
    assert not any("cryosam" in name for name in disk.files())
    writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED


def kill_during(disk: Any, method: str, call: int = 1) -> None:
    """Write in another process that kills itself when it comes to `method` for the `call`-th time."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_writing import GRID, PARAMETERS, TWO
from copick_cryosam.io.job import Job
from copick_cryosam.io.project import open_project
from copick_cryosam.io.writing import Writer
config = {str(disk.config)!r}
real, calls = Writer.{method}, []
def die(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **kwargs)
Writer.{method} = die
job = Job.create(config=config, tomogram="wbp@10.0", seeds="ribosome:curator/1", overwrite=True)
Writer(open_project(config), job).write("TS_001", TWO, GRID, PARAMETERS)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("method", "call"), [("_write_picks", 1), ("_write_masks", 1), ("_write_record", 1)])
def test_killed_run_is_started_again_cleanly(disk: Any, method: str, call: int) -> None:
    kill_during(disk, method, call)
    assert (disk.folder / MARKER).exists()
    writer = writer_for(disk)
    writer.check(["TS_001"])
    assert writer.state("TS_001", PARAMETERS) is OutputState.INTERRUPTED
    writer.clean("TS_001")
    assert not any("cryosam" in name for name in disk.files())
    assert writer.state("TS_001", PARAMETERS) is OutputState.ABSENT
    writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED


def test_killed_overwriting_is_not_taken_for_the_old_result(disk: Any) -> None:
    writer_for(disk).write("TS_001", TWO[:1], GRID, PARAMETERS)
    # All outputs are there again, and only the old record could make them look finished.
    kill_during(disk, "_write_record")
    assert writer_for(disk).state("TS_001", PARAMETERS) is OutputState.INTERRUPTED


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_exception_midway_leaves_nothing(
    disk: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = disk.files()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Writer, "_write_record", fail)
    writer = writer_for(disk)
    with pytest.raises(error):
        writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert disk.files() == before
    assert writer.state("TS_001", PARAMETERS) is OutputState.ABSENT


@pytest.mark.parametrize("where", ["InstanceSegmentations", "Picks"])
def test_full_disk_is_one_line_and_leaves_nothing(disk: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from fsspec.implementations.local import LocalFileSystem

    before = disk.files()
    for name in ("pipe_file", "open"):
        real = getattr(LocalFileSystem, name)

        def fail(self: Any, path: str, *args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            writes = name == "pipe_file" or "w" in str(args[:1] or kwargs.get("mode", ""))
            if where in path and writes:
                raise OSError(28, "No space left on device")
            return real(self, path, *args, **kwargs)

        monkeypatch.setattr(LocalFileSystem, name, fail)
    with pytest.raises(OutputError, match="No space left") as caught:
        writer_for(disk).write("TS_001", TWO, GRID, PARAMETERS)
    assert "\n" not in str(caught.value)
    assert disk.files() == before


@pytest.mark.parametrize("kind", ["picks", "binary", "instance"])
def test_data_of_others_is_never_touched_silently(disk: Any, kind: str) -> None:
    run = disk.root().get_run("TS_001")
    if kind == "picks":
        disk.add_picks("TS_001", [[1, 2, 3]], uri=("ribosome", "cryosam", "1"))
    else:
        mask = np.ones(GRID.shape_zyx, dtype=np.uint16)
        masks = run.new_segmentation(10.0, "ribosome", "1", user_id="cryosam", is_instance=kind == "instance")
        masks.from_numpy(mask)
    before = disk.files()
    writer = writer_for(disk)
    for attempt in (
        lambda: writer.check(["TS_001"]),
        lambda: writer.clean("TS_001"),
        lambda: writer.write("TS_001", TWO, GRID, PARAMETERS),
    ):
        with pytest.raises(OutputError, match="which CryoSAM did not write") as caught:
            attempt()
        assert "--overwrite" in caught.value.hint
    assert disk.files() == before
    writer_for(disk, overwrite=True).write("TS_001", TWO, GRID, PARAMETERS)
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED


def test_other_picks_and_masks_stay(disk: Any) -> None:
    disk.add_picks("TS_001", [[1, 2, 3]], uri=("ribosome", "cryosam", "2"))
    disk.add_picks("TS_001", [[1, 2, 3]], uri=("apoferritin", "cryosam", "1"))
    run = disk.root().get_run("TS_001")
    run.new_segmentation(20.0, "ribosome", "1", user_id="cryosam").from_numpy(np.ones((10, 16, 23), dtype=np.uint8))
    before = disk.files()
    writer_for(disk).write("TS_001", TWO, GRID, PARAMETERS)
    writer_for(disk, overwrite=True).write("TS_001", [], GRID, PARAMETERS)
    assert before <= disk.files()


def test_output_in_the_static_part_is_refused_even_with_overwrite(split_project: Any) -> None:
    static = split_project.static_root()
    split_project.add_tomogram("TS_001", root=static)
    split_project.add_picks("TS_001", [[1, 2, 3]], uri=("ribosome", "cryosam", "1"), root=static)
    before = split_project.files()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"read-only part.*another session"):
            writer_for(split_project, overwrite=overwrite).check(["TS_001"])
    assert split_project.files() == before


def test_results_go_to_the_overlay(split_project: Any) -> None:
    split_project.add_tomogram("TS_001", root=split_project.static_root())
    before = split_project.files()
    writer = writer_for(split_project)
    writer.check(["TS_001"])
    assert split_project.files() == before
    assert not (split_project.overlay / "ExperimentRuns").exists()
    writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert all(name.startswith("overlay/") for name in split_project.files() - before)
    assert writer.state("TS_001", PARAMETERS) is OutputState.FINISHED


def test_overlay_that_cannot_be_written(split_project: Any) -> None:
    split_project.add_tomogram("TS_001", root=split_project.static_root())
    (split_project.folder / "file").write_text("not a folder", encoding="utf-8")
    split_project.content["overlay_root"] = f"local://{split_project.folder}/file/overlay"
    split_project.config.write_text(json.dumps(split_project.content), encoding="utf-8")
    before = split_project.files()
    writer = writer_for(split_project)
    with pytest.raises(OutputError, match=r"overlay .* can be written") as caught:
        writer.check(["TS_001"])
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError):
        writer.write("TS_001", TWO, GRID, PARAMETERS)
    assert split_project.files() == before


def test_read_only_overlay(disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    def refuse(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    for name in ("makedirs", "mkdir", "pipe_file"):
        monkeypatch.setattr(LocalFileSystem, name, refuse)
    before = disk.files()
    with pytest.raises(OutputError, match="Permission denied"):
        writer_for(disk).check(["TS_001"])
    assert disk.files() == before


def test_output_object_must_be_known(disk: Any) -> None:
    with pytest.raises(NotFoundError, match="proteasome"):
        writer_for(disk, output="proteasome:cryosam/1").check(["TS_001"])


def test_segmentation_must_be_on_the_tomogram_s_grid(disk: Any) -> None:
    writer = writer_for(disk, tomogram="wbp", output_segmentation="ribosome:cryosam/1@20.0")
    with pytest.raises(OutputError, match=r"spacing 10\.0"):
        writer.write("TS_001", TWO, GRID, PARAMETERS)


def test_scores_must_be_finite(disk: Any) -> None:
    before = disk.files()
    with pytest.raises(OutputError, match="finite"):
        writer_for(disk).write("TS_001", [instance((0, 0, 0), float("nan"))], GRID, PARAMETERS)
    assert disk.files() == before
