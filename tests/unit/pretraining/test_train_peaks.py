"""Peaks with their truth, and a net that learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from copick_cryosam.pretraining.pool import Sample, save_sample
from copick_cryosam.pretraining.train_peaks import Lessons, main, particles_at, told
from copick_cryosam.ranker import PAIRS, PEAKS, PeakRankers
from copick_cryosam.types import VoxelPoints

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (20, 30, 40)


def sample(centres: list[list[float]], radii: list[float]) -> Sample:
    """The same particles in both tomograms; a voxel belongs to the last particle that holds it."""
    places, sizes = np.array(centres, dtype=np.float64).reshape(-1, 3), np.array(radii)
    labels = np.zeros(SHAPE, dtype=np.uint16)
    voxels = np.indices(SHAPE).reshape(3, -1).T
    for number, (centre, radius) in enumerate(zip(places, sizes, strict=True), start=1):
        labels[(np.linalg.norm(voxels - centre, axis=1) <= radius).reshape(SHAPE)] = number
    rng = np.random.default_rng(0)
    volume = (labels > 0) * 2 + rng.normal(size=SHAPE)
    kinds = np.zeros(len(places), dtype=np.int64)
    return Sample(
        volumes=np.stack([volume, volume]).astype(np.float32),
        labels=np.stack([labels, labels]),
        clutter=np.zeros((2, *SHAPE), dtype=np.bool_),
        kinds=(kinds, kinds),
        centres=(places, places),
        radii=(sizes, sizes),
    )


def test_a_particle_is_found_once_and_what_is_cut_teaches_nothing() -> None:
    one = sample([[10, 10, 10], [10, 15, -2], [8, 20, 30]], [4.0, 6.0, 5.0])
    points = VoxelPoints(
        np.array(
            [
                [10, 11, 10],  # the first particle
                [10, 13, 10],  # the first again, farther off
                [10, 15, 1],  # the one whose centre lies outside
                [15, 5, 35],  # nothing
                [8, 20, 34.9],  # the third, at its rim
            ]
        )
    )
    truth, lesson = told(points, one, 1)
    np.testing.assert_array_equal(truth, [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(lesson, [True, True, False, True, True])


def test_a_place_lies_in_a_particle_or_in_none() -> None:
    one = sample([[10, 10, 10], [8, 20, 30]], [4.0, 5.0])
    points = VoxelPoints(np.array([[10, 10, 13.4], [8, 20, 30], [10, 10, 20], [-3, 40, 90]]))
    np.testing.assert_array_equal(particles_at(points, one, 0), [0, 1, -1, -1])


def test_no_particles_and_no_points() -> None:
    truth, lesson = told(VoxelPoints(np.array([[1.0, 2, 3]])), sample([], []), 0)
    assert (truth[0], lesson[0]) == (0, True)
    truth, lesson = told(VoxelPoints(np.empty((0, 3))), sample([[10, 10, 10]], [4.0]), 0)
    assert truth.shape == lesson.shape == (0,)


def test_collected_once_and_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, out = tmp_path / "pool", tmp_path / "peaks"
    pool.mkdir()
    save_sample(sample([[10, 10, 10], [8, 20, 30]], [4.0, 5.0]), pool / "sample-00000.npz")
    for _ in range(2):
        main(["collect", "--pool", str(pool), "--out", str(out)])
    # the second time there is nothing to do
    assert capsys.readouterr().out.count("peaks,") == 1
    (kept,) = out.glob("*.npz")
    assert kept.name == "peaks-pool-sample-00000.npz"
    for name, columns in (("peaks", PEAKS), ("pairs", PAIRS)):
        one = Lessons.read(kept, name)
        assert one.evidence.shape == (len(one.truth), columns)
        assert one.lesson.shape == one.truth.shape


def test_evidence_that_tells_is_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        truth = (rng.random(80) < 0.4).astype(float)
        # where nothing is learned, the contrary is told
        lesson = np.arange(80) < 60
        arrays: dict[str, Any] = {}
        for name, columns, told_by in (("peaks", PEAKS, 5), ("pairs", PAIRS, 2)):
            rows = rng.normal(size=(80, columns))
            rows[:, told_by] += 3 * truth
            arrays |= {
                f"{name}.evidence": rows,
                f"{name}.truth": np.where(lesson, truth, 1 - truth),
                f"{name}.lesson": lesson,
            }
        np.savez(tmp_path / f"peaks-pool-sample-{number:05d}.npz", **arrays)
    weights = tmp_path / "peaks.safetensors"
    main(["fit", "--out", str(tmp_path), "--steps", "150", "--weights", str(weights)])
    rankers = PeakRankers()
    rankers.load_state_dict(load_file(weights))
    rankers.eval()
    tested, paired = rng.normal(size=(200, PEAKS)), rng.normal(size=(200, PAIRS))
    tested[:100, 5] += 3
    paired[:100, 2] += 3
    found, joined = rankers.probability(tested), rankers.odds(paired)
    assert found[:100].mean() > found[100:].mean() + 0.3
    assert joined[:100].mean() > joined[100:].mean() + 1


def test_nothing_collected_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="collect first"):
        main(["fit", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["collect", "--out", str(tmp_path)])
    assert "--pool" in capsys.readouterr().err
