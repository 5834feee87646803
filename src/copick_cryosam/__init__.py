"""One labelled particle in one tomogram, and every particle like it: scored picks and 3D masks.

    from copick_cryosam import CryoSAM

    particles = CryoSAM.from_preset("embedded").pick(volume, seeds_zyx=[[40, 210, 96]], radius_vox=9)

A detector of several objects that `copick training sasi` trained from a few points of each:

    from copick_cryosam import Sasi

    particles = Sasi.load("detector.safetensors").detect(volume).particles

Names are imported on use, so that importing the package (as every `copick` command does) costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copick_cryosam.config import PRESETS, Settings, preset
    from copick_cryosam.errors import (
        CryosamError,
        DataError,
        DeviceError,
        InputError,
        NotFoundError,
        OutputError,
        SeedError,
    )
    from copick_cryosam.pipeline import CryoSAM
    from copick_cryosam.sasi.inference import Sasi
    from copick_cryosam.sasi.settings import SasiSettings
    from copick_cryosam.types import Instance

    __version__: str

_HOMES = {
    "CryoSAM": "pipeline",
    "Instance": "types",
    "PRESETS": "config",
    "Sasi": "sasi.inference",
    "SasiSettings": "sasi.settings",
    "Settings": "config",
    "preset": "config",
    "CryosamError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "InputError": "errors",
    "NotFoundError": "errors",
    "OutputError": "errors",
    "SeedError": "errors",
}

__all__ = [
    "PRESETS",
    "CryoSAM",
    "CryosamError",
    "DataError",
    "DeviceError",
    "InputError",
    "Instance",
    "NotFoundError",
    "OutputError",
    "Sasi",
    "SasiSettings",
    "SeedError",
    "Settings",
    "__version__",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("copick-cryosam")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
