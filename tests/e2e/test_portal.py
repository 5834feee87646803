"""A data portal project from listing to results, against a portal bucket on the loopback interface.

The bucket is served by moto; copick's cache of portal queries is filled beforehand, so nothing asks the
portal itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copick_cryosam.errors import InputError, NotFoundError, OutputError
from copick_cryosam.io.job import Job, TomogramUri
from copick_cryosam.io.project import open_project
from copick_cryosam.io.record import OutputState
from copick_cryosam.io.writing import Writer
from copick_cryosam.types import Grid, Instance

BUCKET = "cryoet-data-portal-public"
SHAPE = (20, 33, 47)
SPACING = 7.84
VOLUME = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
TOMOGRAM = f"s3://{BUCKET}/1/TS_026/wbp.zarr"
POINTS = f"s3://{BUCKET}/1/TS_026/ribosome.ndjson"
QUERIES = {
    "runs": [{"id": 501, "name": "TS_026", "dataset_id": 1}],
    "voxel_spacings": [{"id": 61, "run_id": 501, "voxel_spacing": SPACING}],
    "tomograms": [
        {
            "id": 70 + n,
            "tomogram_voxel_spacing_id": 61,
            "reconstruction_method": "WBP",
            "processing": processing,
            "processing_software": None,
            "ctf_corrected": False,
            "s3_omezarr_dir": TOMOGRAM,
        }
        for n, processing in enumerate(("raw", "denoised", "denoised"))
    ],
    "tomogram_authors": [],
    "annotations": [{"id": 80, "run_id": 501, "object_id": "GO:0022626", "object_name": "cytosolic ribosome"}],
    "annotation_shapes": [{"id": 81, "annotation_id": 80, "shape_type": "Point"}],
    "annotation_files": [
        {"id": 82, "annotation_shape_id": 81, "tomogram_voxel_spacing_id": 61, "s3_path": POINTS, "format": "ndjson"}
    ],
    "annotation_authors": [],
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A portal bucket; yields its endpoint after pointing every S3 client at it."""
    import s3fs
    import zarr
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL_S3", endpoint),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("NO_PROXY", "127.0.0.1"),
            ("no_proxy", "127.0.0.1"),
        ):
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        # The portal's objects can be read without credentials.
        fs = s3fs.S3FileSystem(s3_additional_kwargs={"ACL": "public-read"})
        for each in (BUCKET, "results"):
            fs.mkdir(each)
        group = zarr.open(zarr.storage.FSStore(TOMOGRAM, fs=fs, mode="w", key_separator="/"), mode="w")
        group.create_dataset("0", data=VOLUME, chunks=(8, 33, 47), dimension_separator="/")
        lines = [{"type": "point", "location": {"x": x, "y": y, "z": z}} for x, y, z in ((5, 6, 7), (40, 30, 10))]
        fs.pipe_file(POINTS, "\n".join(json.dumps(line) for line in lines).encode())
        yield endpoint
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def portal_config(folder: Path, overlay: str) -> Path:
    """A portal configuration whose queries are all answered by the cache."""
    from copick.impl.cryoet_data_portal import CopickConfigCDP
    from copick.util import portal_cache

    content: dict[str, Any] = {
        "config_type": "cryoet_data_portal",
        "name": "portal",
        "version": "1.0",
        "dataset_ids": [1],
        "pickable_objects": [
            {"name": "ribosome", "is_particle": True, "label": 1, "radius": 30.0, "identifier": "GO:0022626"}
        ],
        "overlay_root": overlay,
        "overlay_fs_args": {"auto_mkdir": True} if overlay.startswith("local") else {},
        "portal_cache_dir": str(folder / "cache"),
        "portal_cache_ttl_seconds": 0,
    }
    config = CopickConfigCDP(**content)
    portal_cache.get_or_fetch(
        portal_cache.fingerprint_for_config(config), [1], portal_cache.settings_from_config(config), lambda: QUERIES
    )
    path = folder / "portal.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(params=["local", "s3"])
def config(request: pytest.FixtureRequest, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Portal projects with the overlay on disk and in a bucket."""
    import cryoet_data_portal

    def offline(*_: Any, **__: Any) -> None:
        raise AssertionError("the portal itself was asked")

    monkeypatch.setattr(cryoet_data_portal, "Client", offline)
    overlay = f"local://{tmp_path}/overlay" if request.param == "local" else f"s3://results/{tmp_path.name}"
    return portal_config(tmp_path, overlay)


def test_portal_run_is_read_and_its_results_are_written(config: Path) -> None:
    project = open_project(config)
    assert project.run_names == ("501",)
    assert project.title("501") == "TS_026"
    assert project.select_runs(["TS_026"]) == ("501",)

    volume = project.tomogram("501", TomogramUri("wbp-raw", 7.841))
    assert volume.grid == Grid(SHAPE, SPACING)
    assert [slab.stop for slab in volume.slabs()] == [8, 16, 20]
    np.testing.assert_array_equal(volume[3:5, :, 40:], VOLUME[3:5, :, 40:])
    np.testing.assert_array_equal(volume.read(), VOLUME)
    with pytest.raises(InputError, match=r"portal tomogram 71.*portal tomogram 72"):
        project.tomogram("501", TomogramUri("wbp-denoised", None))
    with pytest.raises(NotFoundError, match=r"501 \(TS_026\).*wbp-denoised@7\.84, wbp-raw@7\.84"):
        project.tomogram("501", TomogramUri("wbp-raw", 10.0))

    job = Job.create(config=str(config), tomogram="wbp-raw@7.84", seeds="ribosome:data-portal/82")
    seeds = project.seeds(job).positive["501"]
    np.testing.assert_allclose(volume.grid.to_voxels(seeds).zyx, [[7, 6, 5], [10, 30, 40]])

    writer = Writer(project, job)
    writer.check(["501"])
    fs = project.run("501").fs_overlay
    assert not fs.exists(project.run("501").overlay_path)
    assert writer.state("501", {}) is OutputState.ABSENT
    found = Instance(
        mask=np.ones((3, 3, 3), dtype=bool),
        origin_zyx=(6, 5, 4),
        prompt_zyx=(7.0, 6.0, 5.0),
        similarity=0.9,
        confidence=0.8,
        score=0.72,
    )
    record = writer.write("501", [found], volume.grid, {"threshold": 0.5})
    assert json.loads(fs.cat_file(record))["counts"] == {"picks": 1}

    again = open_project(config)
    second = Writer(again, job)
    assert second.state("501", {"threshold": 0.5}) is OutputState.FINISHED
    assert second.state("501", {"threshold": 0.6}) is OutputState.STALE
    run = again.run("501")
    (picks,) = run.get_picks("ribosome", "cryosam", "1")
    np.testing.assert_allclose(picks.full_positions(), [[5 * SPACING, 6 * SPACING, 7 * SPACING]])
    (labels,) = run.get_segmentations(user_id="cryosam", is_instance=True)
    assert np.argwhere(labels.numpy()).min(axis=0).tolist() == [6, 5, 4]


def test_interrupted_results_are_removed_from_the_overlay(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = open_project(config)
    job = Job.create(config=str(config), tomogram="wbp-raw@7.84", seeds="ribosome:data-portal/82")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "_write_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Writer(project, job).write("501", [], Grid(SHAPE, SPACING), {})
    place = project.run("501")
    place.fs_overlay.invalidate_cache()
    assert place.fs_overlay.find(place.overlay_path) == []


def test_portal_picks_cannot_be_replaced(config: Path) -> None:
    job = Job.create(
        config=str(config),
        tomogram="wbp-raw@7.84",
        seeds="ribosome:someone/1",
        output="ribosome:data-portal/82",
        overwrite=True,
    )
    with pytest.raises(OutputError, match="read-only part"):
        Writer(open_project(config), job).check(["501"])
