"""Where a training stands, so that one that was killed goes on to the same result.

One safetensors file: the net, the best net so far, the optimisers, the random numbers, and in its header the step,
the curve and a fingerprint of what is trained. It is replaced as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.sasi.points import ParticleClass, TrainingTomogram
from copick_cryosam.sasi.settings import SasiSettings

NAME = "checkpoint.safetensors"


def fingerprint(
    tomograms: Sequence[TrainingTomogram],
    classes: Sequence[ParticleClass],
    settings: SasiSettings,
    device: torch.device,
) -> str:
    """SHA-256 of all that decides a training: settings, classes, points, a sample of the voxels, and the device."""
    digest = hashlib.sha256()
    digest.update(settings.model_dump_json(exclude={"inference", "device"}).encode())
    digest.update(repr([(one.name, one.radius_vox) for one in classes] + [device.type]).encode())
    for one in tomograms:
        digest.update(repr((one.name, one.volume.shape)).encode())
        digest.update(np.ascontiguousarray(one.volume[::7, ::7, ::7]).tobytes())
        for part in (one.labelled.points.zyx, one.labelled.classes, one.labelled.weights):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    target = folder / NAME
    partial = target.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, partial, metadata={"state": json.dumps(state)})
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"checkpoint {target}: expected a place that can be written, found: {error}",
            hint="Write the model to another folder",
        ) from None


def load(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state as saved; None where there is no checkpoint.

    Raises
    ------
    InputError
        It is damaged.
    """
    source = folder / NAME
    if not source.exists():
        return None
    try:
        with safe_open(source, framework="pt", device=str(device)) as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {source}: expected one of this program, found {error}",
            hint="Remove the file to train from the start",
        ) from None


def remove(folder: Path) -> None:
    """Remove the checkpoint, and the folder where nothing else is in it."""
    (folder / NAME).unlink(missing_ok=True)
    (folder / NAME).with_suffix(".partial").unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def module_tensors(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module, its name before theirs."""
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def restore_module(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo `module_tensors`."""
    start = f"{name}."
    module.load_state_dict({key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)})


def optimiser_tensors(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser keeps of each parameter; its settings follow from those of the training."""
    kept = optimiser.state_dict()["state"]
    return {f"{name}.{index}.{key}": value for index, each in kept.items() for key, value in each.items()}


def restore_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimiser_tensors`."""
    whole = optimiser.state_dict()
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            _, index, what = key.rsplit(".", 2)
            kept.setdefault(int(index), {})[what] = value
    optimiser.load_state_dict({"state": kept, "param_groups": whole["param_groups"]})
