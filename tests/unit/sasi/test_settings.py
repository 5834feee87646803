from __future__ import annotations

from pathlib import Path

import pytest

from copick_cryosam.errors import InputError
from copick_cryosam.sasi.settings import SasiSettings, sasi_settings


def test_a_file_and_a_mapping_change_only_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "sasi.yaml"
    path.write_text("infill: {chains: 5}\ntraining: {steps: 7}\n")
    base = sasi_settings({"training": {"batch": 3}})
    changed = sasi_settings(path, base)
    assert (changed.infill.chains, changed.training.steps, changed.training.batch) == (5, 7, 3)
    assert changed.model_dump(exclude={"infill", "training"}) == SasiSettings().model_dump(
        exclude={"infill", "training"}
    )
    assert sasi_settings(changed.model_dump()) == changed


@pytest.mark.parametrize(
    ("values", "field", "known"),
    [
        ({"infill": {"chain": 3}}, "infill.chain", "chains"),
        ({"training": {"steps": 0}}, "training.steps", ""),
        ({"architecture": "unet"}, "architecture", "deepfinder"),
        ({"architecture": "deepfinder"}, "init embednet", "architecture"),
        ({"loss": {"dice": 0, "focal": 0}}, "loss", "above 0"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(values: dict[str, object], field: str, known: str) -> None:
    with pytest.raises(InputError) as caught:
        sasi_settings(values)
    assert field in str(caught.value)
    assert known in str(caught.value)
    assert "\n" not in str(caught.value)
