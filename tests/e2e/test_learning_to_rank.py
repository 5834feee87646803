"""From simulated tomograms to the weights of the ranking, by the two commands of `train_ranker`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.pool import Sample, save_sample
from copick_cryosam.pretraining.searches import read_searches
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.simulate import Scene, centres_inside, crop_truth, simulate
from copick_cryosam.pretraining.train_ranker import main
from copick_cryosam.ranker import FIRST, Rankers

SHAPE = (40, 96, 112)
COUNTS = (8, 6)
NONE_OUT = ("--sparse", "0", "--thin", "0", "--alone", "0")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """One pair of tomograms with two kinds."""
    rng = np.random.default_rng(3)
    shapes = [random_shape(rng, family=family, radius=radius) for family, radius in (("globule", 7), ("rod", 9))]
    scene = Scene(shape_zyx=SHAPE, counts=COUNTS, membranes=0, filaments=0, beads=0, gap=1)
    drawn = [simulate(scene, shapes, Imaging(snr=0.3, tilt_range=60, tilt_step=3), rng) for _ in range(2)]
    centres = [[centres_inside(specimen, kind) for kind in range(2)] for _, specimen in drawn]
    kinds = tuple(np.repeat([0, 1], [len(some) for some in each]) for each in centres)
    labels = [crop_truth(specimen) for _, specimen in drawn]
    folder = tmp_path_factory.mktemp("pool")
    sample = Sample(
        volumes=np.stack([volume for volume, _ in drawn]),
        labels=np.stack([one[0] for one in labels]),
        clutter=np.stack([one[1] for one in labels]),
        kinds=(kinds[0], kinds[1]),
        centres=(np.concatenate(centres[0]), np.concatenate(centres[1])),
        radii=tuple(np.array([shapes[kind].radius for kind in some]) for some in kinds),  # type: ignore[arg-type]
    )
    save_sample(sample, folder / "sample-00000.npz")
    return folder


def collected(pool: Path, out: Path, *options: str) -> Path:
    threads = torch.get_num_threads()
    try:
        main(["collect", "--pool", str(pool), "--out", str(out), *options])
    finally:
        torch.set_num_threads(threads)
    return out


def test_searches_become_weights(pool, tmp_path, capsys):
    out = collected(pool, tmp_path / "searches", *NONE_OUT)
    searches = read_searches(out)
    # two kinds in two tomograms
    assert len(searches) == 4
    for one in searches:
        assert one.first.shape == (len(one.truth), FIRST)
        assert np.isfinite(one.second(np.full(len(one.truth), 0.5))).all()
        assert np.isfinite(one.third(np.full(len(one.truth), 0.5))).all()
        assert 1 <= one.truth.sum() <= max(COUNTS)
    # a search from one seed in its own tomogram has that seed among the particles, as no lesson
    assert all(0 < (~one.lesson).sum() < 20 for one in searches[::2])
    assert all(one.lesson.all() for one in searches[1::2])
    weights = tmp_path / "ranker.safetensors"
    fit = ["fit", "--out", str(out), "--weights", str(weights), "--steps", "5"]
    with pytest.raises(SystemExit, match="at least 3 samples, found 1"):
        main(fit)
    (file,) = out.iterdir()
    for other in ("other", "third"):
        shutil.copy(file, file.with_name(f"searches-{other}-sample-00000.npz"))
    main(fit)
    assert "3 samples, 12 searches" in capsys.readouterr().out
    Rankers().load_state_dict(load_file(weights))


def test_collecting_goes_on_where_it_stopped(pool, tmp_path):
    out = collected(pool, tmp_path / "searches", "--thin", "1")
    (file,) = out.iterdir()
    before = file.stat().st_mtime_ns
    collected(pool, out, "--thin", "1")
    assert [one.stat().st_mtime_ns for one in out.iterdir()] == [before]


def test_particles_are_taken_out_of_searches(pool, tmp_path):
    all_there = read_searches(collected(pool, tmp_path / "all", *NONE_OUT))
    thinned = read_searches(collected(pool, tmp_path / "thinned", *NONE_OUT, "--thin", "1"))
    assert sum(one.truth.sum() for one in thinned) < sum(one.truth.sum() for one in all_there)
    sparse = read_searches(collected(pool, tmp_path / "sparse", "--sparse", "1"))
    # where other kinds are taken out, too, fewer candidates are left
    assert sum(len(one.truth) for one in sparse) < sum(len(one.truth) for one in thinned)
    # where it was clicked, the particles stay
    assert all((one.truth * ~one.lesson).sum() >= 1 for one in thinned[::2])
