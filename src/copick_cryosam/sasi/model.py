"""A trained detector on disk: one safetensors file that holds the net and the record of what it is.

The record (format, classes, voxel spacing, polarity, settings, what it was trained from) stands in the
file's own header, so that net and record cannot be parted, nor one be replaced without the other. It is written
beside it as JSON, too, for people and other programs; nothing here reads that copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from copick_cryosam.errors import DataError, InputError, NotFoundError, OutputError
from copick_cryosam.sasi.labels import sphere_radius
from copick_cryosam.sasi.networks import Network, load_network
from copick_cryosam.sasi.points import ParticleClass
from copick_cryosam.sasi.settings import SasiSettings
from copick_cryosam.versions import versions

__all__ = [
    "SasiModel",
    "SavedClass",
    "SavedModel",
    "check_place",
    "load_model",
    "model_paths",
    "read_record",
    "save_model",
]

FORMAT = 1
"""Of the file. Raise it when the record changes, or what a net is given: `contrast.standardise`."""
MOST_CLASSES = 255
"""Labels are kept in 8 bits, and 0 is background."""

_HEADER = "copick-cryosam-sasi"
_PACKAGES = ("copick-cryosam", "torch", "numpy", "monai")
_ENDINGS = (".safetensors", ".json")


@dataclass(frozen=True, eq=False, kw_only=True)
class SasiModel:
    """A detector: the net and what is needed to use it.

    Attributes
    ----------
    network : maps of background and each class from windows
    settings : it was trained with
    classes : in the order of the net's outputs; class k, counted from 1, is output k
    voxel_spacing : Å, of the tomograms it was trained on
    polarity : how particles look in them; the net is given bright ones
    training : what it was trained from and how that went (points and whose they are, curve); anything JSON can hold
    """

    network: Network
    settings: SasiSettings
    classes: tuple[ParticleClass, ...]
    voxel_spacing: float
    polarity: Literal["dark", "light"]
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [one.name for one in self.classes]
        if not 1 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names):
            raise InputError(
                f"classes: expected 1 to {MOST_CLASSES} different names, found {len(names)} "
                f"({len(set(names))} different)",
                hint="Name each object once",
            )
        if not (math.isfinite(self.voxel_spacing) and self.voxel_spacing > 0):
            raise InputError(
                f"voxel spacing: expected a positive number of Å, found {self.voxel_spacing:g}",
                hint="Give the tomograms' voxel spacing",
            )

    @property
    def window(self) -> int:
        """Edge of the windows that the net is given, voxels."""
        return self.network.window

    def label_radius(self, one: ParticleClass) -> float:
        """Radius of the sphere that stood for a particle of a class in training, voxels."""
        return sphere_radius(one, self.settings.labels)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedClass(_Record):
    """A class as it is saved."""

    name: str = Field(min_length=1)
    label: int = Field(ge=1, le=MOST_CLASSES)
    radius_voxels: float = Field(gt=0, allow_inf_nan=False)
    radius_angstrom: float = Field(gt=0, allow_inf_nan=False)


class SavedModel(_Record):
    """The record of a saved model."""

    format: Literal[1]
    classes: tuple[SavedClass, ...] = Field(min_length=1)
    voxel_spacing: float = Field(gt=0, allow_inf_nan=False)
    polarity: Literal["dark", "light"]
    settings: SasiSettings
    training: dict[str, Any]
    versions: dict[str, str]
    sha256: str = Field(min_length=64, max_length=64, description="of the tensors, see `tensor_hash`")

    @property
    def architecture(self) -> str:
        """Name of the net."""
        return self.settings.architecture


def model_paths(path: str | Path) -> tuple[Path, Path]:
    """The model's safetensors file and its JSON beside it, from either's path or from what both begin with."""
    path = Path(path)
    stem = path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name
    return path.with_name(f"{stem}{_ENDINGS[0]}"), path.with_name(f"{stem}{_ENDINGS[1]}")


def check_place(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse now what could only fail after the training.

    Raises
    ------
    OutputError
        A model of that name exists and `overwrite` is not given, or there is no such folder, or it is read-only.
    """
    for each in model_paths(path):
        if each.exists() and not overwrite:
            raise OutputError(
                f"model {each}: expected no file yet, found one",
                hint="Choose another name, or replace it with --overwrite",
            )
        if not each.parent.is_dir() or not os.access(each.parent, os.W_OK):
            raise OutputError(
                f"model {each}: expected a folder that can be written, found none", hint="Create the folder first"
            )


def save_model(path: str | Path, model: SasiModel) -> Path:
    """Write a model in place of what has its name, whole or not at all; the path of its safetensors file.

    Raises
    ------
    OutputError
        It cannot be written; a model of that name is as it was.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    record = _record(model, tensors)
    paths = model_paths(path)
    parts = [each.with_name(f".{each.name}.{os.getpid()}.part") for each in paths]
    compact, readable = json.dumps(record, allow_nan=False), json.dumps(record, indent=2, allow_nan=False)
    try:
        for part, content in zip(parts, (save(tensors, {_HEADER: compact}), f"{readable}\n".encode()), strict=True):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for part, whole in zip(parts, paths, strict=True):
            os.replace(part, whole)
    except OSError as error:
        raise OutputError(
            f"model {paths[0]}: expected a place that can be written, found: {error.strerror}",
            hint="Choose another path, or free space",
        ) from None
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return paths[0]


def read_record(path: str | Path) -> SavedModel:
    """What a model is, without its tensors.

    Raises
    ------
    NotFoundError
        There is no such file.
    DataError
        It is damaged or no model; or of another version of the format.
    """
    with _opened(model_paths(path)[0]) as file:
        return _parse(file.metadata(), model_paths(path)[0])


def load_model(path: str | Path, device: torch.device) -> SasiModel:
    """Read a model; its net is on `device`, for use and not for training.

    Raises
    ------
    NotFoundError
        There is no such file.
    DataError
        It is damaged or no model; of another version of the format; or its tensors are not those of its record, or
        of another net.
    InputError
        The net needs a package that is not installed.
    """
    file_path = model_paths(path)[0]
    with _opened(file_path) as file:
        record = _parse(file.metadata(), file_path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if tensor_hash(tensors) != record.sha256:
            raise _damaged(file_path, "tensors that are not those of its record")
        network = load_network(record.settings, len(record.classes))
        _check_fit(network.state_dict(), tensors, record.settings.architecture, file_path)
        network.load_state_dict(tensors)
    return SasiModel(
        network=network.to(device).eval(),
        settings=record.settings,
        classes=tuple(ParticleClass(name=one.name, radius_vox=one.radius_voxels) for one in record.classes),
        voxel_spacing=record.voxel_spacing,
        polarity=record.polarity,
        training=record.training,
    )


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU with their names, types and shapes, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _record(model: SasiModel, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "classes": [
            {
                "name": one.name,
                "label": label,
                "radius_voxels": one.radius_vox,
                "radius_angstrom": one.radius_vox * model.voxel_spacing,
            }
            for label, one in enumerate(model.classes, start=1)
        ],
        "voxel_spacing": model.voxel_spacing,
        "polarity": model.polarity,
        "settings": model.settings.model_dump(mode="json"),
        "training": dict(model.training),
        "versions": {name: found for name, found in versions(_PACKAGES).items() if found is not None},
        "sha256": tensor_hash(tensors),
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise NotFoundError(
            f"model {path}: expected a file, found none", hint="Train one with copick training sasi"
        ) from None
    except SafetensorError as error:
        raise _damaged(path, f"a damaged or foreign file ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise _damaged(path, str(error.strerror or error).splitlines()[0]) from None


def _parse(metadata: Mapping[str, str] | None, path: Path) -> SavedModel:
    text = (metadata or {}).get(_HEADER)
    if text is None:
        raise _damaged(path, "tensors of another program")
    try:
        content = json.loads(text)
        found = content["format"]
    except (ValueError, TypeError, KeyError):
        raise _damaged(path, "a record that cannot be read") from None
    if found != FORMAT:
        raise DataError(
            f"model {path}: expected format {FORMAT}, found {found!r}",
            hint="Use the version of copick-cryosam that wrote it, or train again",
        )
    try:
        return SavedModel.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"in its record {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _check_fit(net: Mapping[str, Tensor], tensors: Mapping[str, Tensor], architecture: str, path: Path) -> None:
    for name in sorted({*net, *tensors}):
        expected, found = (tuple(some[name].shape) if name in some else "none" for some in (net, tensors))
        if expected != found:
            raise _damaged(path, f"tensors of another net than {architecture} ({name}: {found} instead of {expected})")


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"model {path}: expected a detector of copick training sasi, found {found}", hint="Train it again")
