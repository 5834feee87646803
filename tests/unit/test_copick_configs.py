"""The configs that ship with the repository are what copick takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "copick_configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_config_is_valid_and_pickable(path: Path) -> None:
    from copick.impl.cryoet_data_portal import CopickConfigCDP
    from copick.impl.filesystem import CopickConfigFSSpec

    values = json.loads(path.read_text(encoding="utf-8"))
    kind = {"cryoet_data_portal": CopickConfigCDP, "filesystem": CopickConfigFSSpec}[values["config_type"]]
    config = kind(**values)
    particles = [each for each in config.pickable_objects if each.is_particle]
    assert particles
    assert all(each.radius > 0 and each.label > 0 for each in particles)
    if kind is CopickConfigCDP:
        # the portal's annotations come only for objects that have an identifier
        assert all(each.identifier for each in particles)
        assert config.dataset_ids


def test_the_synthetic_config_opens_what_the_demo_makes() -> None:
    from copick_cryosam.demo.scene import OBJECTS

    values = json.loads((CONFIGS / "synthetic.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in values["pickable_objects"]] == [each.name for each in OBJECTS]
