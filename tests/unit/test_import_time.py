"""Importing the package and its commands loads no heavy library: every call of `copick` pays for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import copick_cryosam

HEAVY = ("torch", "zarr", "matplotlib", "scipy", "transformers", "dask", "segment_anything")
COMMANDS = Path(copick_cryosam.__file__).parent / "cli"
MODULES = sorted(f"copick_cryosam.cli.{path.stem}" for path in COMMANDS.glob("*.py") if path.stem != "__init__")


def loaded_by(code: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after running `code`."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    return {str(name).split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_package_is_light() -> None:
    assert not loaded_by("import copick_cryosam") & {*HEAVY, "numpy", "pydantic", "copick"}


def test_commands_add_nothing_heavy_to_copick() -> None:
    # What copick's own command line loads is copick's matter.
    before = loaded_by("import copick.cli.cli, copick.cli.util, copick.cli.types, copick_utils.cli.util")
    after = loaded_by("import " + ", ".join(["copick.cli.cli", "copick_utils.cli.util", *MODULES]))
    assert not (after - before) & set(HEAVY)
    assert "torch" not in after


def test_embedded_models_need_no_foundation_models() -> None:
    # transformers takes seconds to import, and is not part of a plain install.
    code = (
        "import numpy as np, copick_cryosam\n"
        "volume = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)\n"
        "volume[5:11, 5:11, 5:11] += 3\n"
        "copick_cryosam.CryoSAM.from_preset('embedded', device='cpu').pick(volume, [[8, 8, 8]], 3)"
    )
    found = loaded_by(code)
    assert "torch" in found
    assert not found & {"transformers", "huggingface_hub", "segment_anything", "copick_cryosam_segment_anything"}
    assert not found & {"copick", "zarr", "matplotlib", "dask"}


@pytest.mark.parametrize("name", copick_cryosam.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(copick_cryosam, name) is not None
    assert name in dir(copick_cryosam)


def test_public_names_come_from_their_modules() -> None:
    from copick_cryosam.errors import SeedError
    from copick_cryosam.pipeline import CryoSAM
    from copick_cryosam.sasi.inference import Sasi

    assert copick_cryosam.CryoSAM is CryoSAM
    assert copick_cryosam.Sasi is Sasi
    assert copick_cryosam.SeedError is SeedError


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cryosam'"):
        copick_cryosam.Cryosam  # noqa: B018
