"""A real tomogram: the polarity is found, and what is picked is the microtubule."""

from __future__ import annotations

import importlib.util
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from copick_cryosam.config import preset


def load_microtubule() -> ModuleType:
    """The script beside this file; it is no part of any package."""
    spec = importlib.util.spec_from_file_location("microtubule", Path(__file__).with_name("microtubule.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


microtubule = load_microtubule()
WEIGHTS = [files("copick_cryosam.weights").joinpath(f"{name}.safetensors") for name in ("embednet", "promptnet")]

pytestmark = [
    pytest.mark.skipif(not microtubule.DATA.is_file(), reason=f"the data are not at {microtubule.DATA}"),
    pytest.mark.skipif(not all(path.is_file() for path in WEIGHTS), reason="the weights are not in this source tree"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The job's result from one seed."""
    return microtubule.pick(tmp_path_factory.mktemp("microtubule"), preset("embedded"))


def test_truth_lies_on_the_wall() -> None:
    volume = microtubule.read_volume()
    distance = microtubule.distance_to_axis(volume.shape)
    wall = volume[(distance >= 8) & (distance <= 14)].mean()
    assert wall > volume[distance < 6].mean()
    assert wall > volume[(distance > 18) & (distance < 30)].mean()


def test_clicks_lie_on_the_axis_between_its_ends() -> None:
    distance = microtubule.distance_to_axis(microtubule.read_volume().shape)
    for place in microtubule.clicks():
        assert distance[tuple(np.round(place / microtubule.VOXEL_NM).astype(int))] < microtubule.VOXEL_NM
    heights = [place[1] for place in microtubule.clicks()]
    assert sorted(heights, reverse=True) == heights
    assert len(set(heights)) == microtubule.CLICKS


def test_polarity_is_found(result: Any) -> None:
    assert result.summary.succeeded
    assert result.summary.polarity == "light"


def test_seed_s_instance_lies_in_the_tube(result: Any) -> None:
    print(microtubule.table([result]))
    assert result.own is not None
    own = microtubule.agreement(result.seeded)
    assert own.precision >= 0.8
    assert own.coverage > 0


def test_all_instances_stay_closer_to_the_tube_than_chance(result: Any) -> None:
    everything = microtubule.agreement(result.everything)
    tube = microtubule.distance_to_axis(result.volume.shape) <= microtubule.INSIDE_NM
    assert everything.precision > tube.mean()
    assert everything.coverage >= microtubule.agreement(result.seeded).coverage


def test_figure_is_saved(result: Any, tmp_path: Path) -> None:
    microtubule.save_figure(result, tmp_path / "slices.png")
    assert (tmp_path / "slices.png").stat().st_size > 10_000
    assert np.isfinite(result.volume).all()
