"""One seed on kinds that training never saw: simulated tomograms of the held-out density maps.

Needs the maps in ../shared/data/templates beside the repository. The full table comes from
`python -m copick_cryosam.pretraining.validate --templates FOLDER`; this is one small data set of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.pool import HELD_OUT_MAPS, training_maps
from copick_cryosam.pretraining.shapes import read_shape
from copick_cryosam.pretraining.validate import Layout, data_set, score_kind

TEMPLATES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "templates"

pytestmark = pytest.mark.skipif(not TEMPLATES.is_dir(), reason="no density maps in ../shared/data/templates")


def test_held_out_maps_are_no_part_of_training() -> None:
    assert len(HELD_OUT_MAPS) >= 4
    assert not set(HELD_OUT_MAPS) & {shape.name for shape in training_maps(TEMPLATES)}
    assert len(training_maps(TEMPLATES)) + len(HELD_OUT_MAPS) == len(list(TEMPLATES.glob("*.mrc")))


def test_one_seed_beats_the_difference_of_gaussians() -> None:
    """The program's own threshold; localisation within one radius, seed left out, mean over the kinds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(20)
    shapes = [read_shape(TEMPLATES / f"{name}.mrc") for name in HELD_OUT_MAPS]
    data = data_set(shapes, 0.1, rng, Layout(shape_zyx=(64, 160, 160), count=8, tomograms=1))
    model = CryoSAM.from_preset("embedded", device="cpu")
    opened = [model.open(volume, None, 8.0, polarity="light") for volume, _ in data]
    specimens = [specimen for _, specimen in data]
    rows = {}
    for kind, shape in enumerate(shapes):
        scores = score_kind(model, opened, specimens, kind, shape, rng)
        if scores is not None:
            rows[shape.name] = scores
            print(shape.name, {key: round(value, 2) for key, value in scores.items()})
    torch.set_num_threads(threads)
    assert len(rows) >= 4
    ours, baseline, oracle = (
        np.mean([row[column] for row in rows.values()]) for column in ("f1", "baseline_f1", "baseline_oracle_f1")
    )
    print(f"mean F1 {ours:.2f}, difference of Gaussians {baseline:.2f}, at its best threshold {oracle:.2f}")
    assert ours > baseline + 0.1
    assert ours > oracle
