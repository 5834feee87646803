"""Runs, objects, tomograms and seeds are found, or the error names those that there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copick_cryosam.errors import DataError, InputError, NotFoundError, SeedError
from copick_cryosam.io.job import Job, SegmentationUri, TomogramUri
from copick_cryosam.io.project import open_project
from copick_cryosam.types import AngstromPoints, Grid


def job_for(config: object, **given: Any) -> Job:
    return Job.create(**{"config": str(config), "tomogram": "wbp@10.0", "seeds": "ribosome:curator/1", **given})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (None, NotFoundError),
        ("{", InputError),
        ("[]", InputError),
        ("{}", InputError),
        ('{"config_type": "floppy"}', InputError),
        ('{"name": "x", "pickable_objects": [], "overlay_root": "nosuchprotocol://x"}', InputError),
    ],
)
def test_broken_config_is_one_line(tmp_path: Path, text: str | None, kind: type[Exception]) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(kind, match="config") as caught:
        open_project(path)
    assert "\n" not in str(caught.value)


def test_config_without_type_is_a_file_system(project_on_disk: Any) -> None:
    project_on_disk.add_tomogram("TS_001")
    content = {key: value for key, value in project_on_disk.content.items() if key != "config_type"}
    project_on_disk.config.write_text(json.dumps(content), encoding="utf-8")
    assert open_project(project_on_disk.config).run_names == ("TS_001",)


def test_runs_are_resolved_in_order_without_repeats(project_on_disk: Any) -> None:
    for run in ("TS_001", "TS_002", "TS_003"):
        project_on_disk.add_tomogram(run)
    project = open_project(project_on_disk.config)
    assert project.select_runs(None) == ("TS_001", "TS_002", "TS_003")
    assert project.select_runs(["TS_003", "TS_001", "TS_003"]) == ("TS_003", "TS_001")
    with pytest.raises(NotFoundError, match=r"'TS_9'.*TS_001, TS_002, TS_003"):
        project.select_runs(["TS_9"])


def test_project_without_runs(project_on_disk: Any) -> None:
    with pytest.raises(NotFoundError, match="found none"):
        open_project(project_on_disk.config).select_runs(None)


def test_objects(project_on_disk: Any) -> None:
    project = open_project(project_on_disk.config)
    assert project.object("ribosome").radius == 60.0
    with pytest.raises(NotFoundError, match="ribosome, apoferritin, unsized"):
        project.object("proteasome")
    with pytest.raises(InputError, match="is_particle"):
        project.object("membrane")
    with pytest.raises(InputError, match="radius"):
        project.object("unsized")


def test_tomogram_spacing_snaps_to_the_stored_one_and_no_further(project_on_disk: Any) -> None:
    project_on_disk.add_tomogram("TS_001", spacing=10.012)
    project = open_project(project_on_disk.config)
    snapped = project.tomogram("TS_001", TomogramUri("wbp", 10.02))
    assert snapped.grid == Grid((20, 33, 47), 10.012)
    with pytest.raises(NotFoundError, match=r"expected tomogram wbp@10\.05, found wbp@10\.012"):
        project.tomogram("TS_001", TomogramUri("wbp", 10.05))
    with pytest.raises(NotFoundError, match=r"found wbp@10\.012"):
        project.tomogram("TS_001", TomogramUri("denoised", 10.012))


def test_ambiguous_tomogram_is_refused_and_the_exact_spacing_wins(project_on_disk: Any) -> None:
    project_on_disk.add_tomogram("TS_001", spacing=10.0)
    project_on_disk.add_tomogram("TS_001", spacing=10.005)
    project = open_project(project_on_disk.config)
    assert project.tomogram("TS_001", TomogramUri("wbp", 10.005)).grid.voxel_spacing == 10.005
    with pytest.raises(InputError, match=r"found 2: wbp@10\.0, wbp@10\.005|found 2: wbp@10\.005, wbp@10\.0"):
        project.tomogram("TS_001", TomogramUri("wbp", None))


def test_run_without_tomograms(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [[1, 2, 3]])
    with pytest.raises(NotFoundError, match="no tomograms"):
        open_project(project_on_disk.config).tomogram("TS_001", TomogramUri("wbp", 10.0))


def test_static_tomogram_stands_before_its_repetition_in_the_overlay(split_project: Any) -> None:
    data = split_project.add_tomogram("TS_001", root=split_project.static_root())
    copy = split_project.overlay / "ExperimentRuns/TS_001/VoxelSpacing10.000/wbp.zarr"
    copy.mkdir(parents=True)
    volume = open_project(split_project.config).tomogram("TS_001", TomogramUri("wbp", 10.0))
    np.testing.assert_array_equal(volume.read(), data)


def test_seeds_are_at_location_plus_translation(project_on_disk: Any) -> None:
    transforms = np.tile(np.eye(4), (2, 1, 1))
    transforms[0, :3, 3] = [5.0, -3.0, 2.0]
    project_on_disk.add_picks("TS_001", [[100, 110, 120], [0, 0, 0]], transforms=transforms)
    project_on_disk.add_picks("TS_002", [])
    project_on_disk.add_picks("TS_003", [[7, 8, 9]])
    project_on_disk.add_picks("TS_003", [[1, 1, 1]], uri=("ribosome", "other", "1"))
    project = open_project(project_on_disk.config)
    seeds = project.seeds(job_for(project_on_disk.config)).positive
    assert list(seeds) == ["TS_001", "TS_003"]
    assert isinstance(seeds["TS_001"], AngstromPoints)
    np.testing.assert_allclose(seeds["TS_001"].xyz, [[105, 107, 122], [0, 0, 0]])
    np.testing.assert_allclose(seeds["TS_003"].xyz, [[7, 8, 9]])
    few = project.seeds(job_for(project_on_disk.config, seed_runs=("TS_003",)))
    assert list(few.positive) == ["TS_003"]


def test_open_seed_uri_never_takes_the_job_s_own_output(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [[1, 2, 3]])
    project_on_disk.add_picks("TS_001", [[9, 9, 9]], uri=("ribosome", "cryosam", "1"))
    seeds = open_project(project_on_disk.config).seeds(job_for(project_on_disk.config, seeds="ribosome"))
    np.testing.assert_allclose(seeds.positive["TS_001"].xyz, [[1, 2, 3]])


def test_negatives(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [[1, 2, 3]])
    project_on_disk.add_picks("TS_001", [[4, 5, 6]], uri=("apoferritin", "curator", "1"))
    project = open_project(project_on_disk.config)
    found = project.seeds(job_for(project_on_disk.config, negatives="apoferritin:curator/1"))
    np.testing.assert_allclose(found.negative["TS_001"].xyz, [[4, 5, 6]])
    with pytest.raises(SeedError, match=r"negatives.*apoferritin:nobody/1.*apoferritin:curator/1"):
        project.seeds(job_for(project_on_disk.config, negatives="apoferritin:nobody/1"))


def test_no_seeds_names_the_picks_there_are(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [], uri=("ribosome", "curator", "1"))
    project_on_disk.add_picks("TS_001", [[1, 2, 3]], uri=("ribosome", "ann", "4"))
    project_on_disk.add_picks("TS_001", [[1, 2, 3]], uri=("apoferritin", "ann", "5"))
    project = open_project(project_on_disk.config)
    with pytest.raises(SeedError, match="none in 1 run") as caught:
        project.seeds(job_for(project_on_disk.config))
    assert "ribosome:ann/4" in caught.value.hint
    assert "apoferritin" not in caught.value.hint
    with pytest.raises(NotFoundError, match="proteasome"):
        project.seeds(job_for(project_on_disk.config, seeds="proteasome:curator/1"))


def test_no_picks_of_the_object_at_all(project_on_disk: Any) -> None:
    project_on_disk.add_tomogram("TS_001")
    with pytest.raises(SeedError, match="Label one ribosome"):
        open_project(project_on_disk.config).seeds(job_for(project_on_disk.config))


@pytest.mark.parametrize(
    "text",
    [
        '{"points": [',
        "[]",
        '{"pickable_object_name": "ribosome", "user_id": "curator", "session_id": "1", "points": 3}',
    ],
)
def test_damaged_picks_are_named(project_on_disk: Any, text: str) -> None:
    project_on_disk.add_picks("TS_001", [[1, 2, 3]])
    path = project_on_disk.overlay / "ExperimentRuns/TS_001/Picks/curator_1_ribosome.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"ribosome:curator/1 of run TS_001") as caught:
        open_project(project_on_disk.config).seeds(job_for(project_on_disk.config))
    assert "\n" not in str(caught.value)


def test_picks_with_nan_are_refused(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [[1, np.nan, 3]])
    with pytest.raises(DataError, match="finite"):
        open_project(project_on_disk.config).seeds(job_for(project_on_disk.config))


def test_stray_file_among_the_picks(project_on_disk: Any) -> None:
    project_on_disk.add_picks("TS_001", [[1, 2, 3]])
    (project_on_disk.overlay / "ExperimentRuns/TS_001/Picks/notes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="picks of run TS_001"):
        open_project(project_on_disk.config).seeds(job_for(project_on_disk.config))


def test_roi_is_read_on_the_tomogram_s_grid(project_on_disk: Any) -> None:
    project_on_disk.add_tomogram("TS_001")
    mask = np.zeros((20, 33, 47), dtype=np.uint8)
    mask[2:5, 7:9, 11:30] = 1
    run = project_on_disk.root().get_run("TS_001")
    run.new_segmentation(10.0, "membrane", "1", user_id="ann").from_numpy(mask)
    run.new_segmentation(10.0, "membrane", "2", user_id="ann").from_numpy(mask[:, :, 1:])
    project = open_project(project_on_disk.config)
    grid = Grid((20, 33, 47), 10.0)
    read = project.roi("TS_001", SegmentationUri.parse("membrane:ann/1", "ROI URI"), grid)
    assert read.dtype == np.bool_
    np.testing.assert_array_equal(read, mask == 1)
    with pytest.raises(DataError, match=r"\(20, 33, 47\).*\(20, 33, 46\)"):
        project.roi("TS_001", SegmentationUri.parse("membrane:ann/2", "ROI URI"), grid)
    with pytest.raises(NotFoundError, match=r"membrane:ann/1@10\.0, membrane:ann/2@10\.0"):
        project.roi("TS_001", SegmentationUri.parse("membrane:bob/1", "ROI URI"), grid)
    with pytest.raises(InputError, match="expected one region"):
        project.roi("TS_001", SegmentationUri.parse("membrane", "ROI URI"), grid)
    with pytest.raises(NotFoundError, match=r"20\.0"):
        project.roi("TS_001", SegmentationUri.parse("membrane:ann/1", "ROI URI"), Grid((10, 16, 23), 20.0))


def test_importing_io_imports_neither_torch_nor_copick() -> None:
    code = (
        "import sys, copick_cryosam.io.writing\n"
        "sys.exit(', '.join(n for n in ('torch', 'copick', 'zarr', 'botocore') if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
