"""SAM from a checkpoint: found, recognised from its tensors, and built without copying them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from copick_cryosam.errors import DataError
from copick_cryosam.foundation.catalogue import SAMS, SamKind, find_sam, find_transformer
from copick_cryosam.foundation.reading import file_size, read_state
from copick_cryosam.foundation.sam_modules import official

__all__ = [
    "LoadedSam",
    "file_sha256",
    "find_sam",
    "find_transformer",
    "identify_sam",
    "load_sam",
    "read_state",
    "recognise_sam",
    "sam_checkpoint",
]

_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's colours, 0 to 255, as in the official `build_sam`."""
_POSITION = "image_encoder.pos_embed"
"""Position embeddings of the planes: their last axis tells the kinds apart."""
_RELATIVES = {
    "mask_decoder.hf_token.weight": "SAM-HQ",
    "image_encoder.patch_embed.seq.0.c.weight": "MobileSAM",
    "image_encoder.trunk.pos_embed": "SAM 2",
    "vision_encoder.pos_embed": "SAM as transformers saves it",
    "sam.image_encoder.pos_embed": "SAM inside another model",
    "module.image_encoder.pos_embed": "SAM saved by DataParallel",
}
"""A tensor that only this relative of SAM has."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedSam:
    """SAM with its weights.

    Attributes
    ----------
    sam : segment-anything's `Sam`: evaluation mode, float32, on the CPU, weights mapped from the file
    kind : recognised from the tensors
    path : the checkpoint
    signature : ``sam-<kind>-<first 12 digits of the file's SHA-256>``
    """

    sam: nn.Module
    kind: SamKind
    path: Path
    signature: str


def sam_checkpoint(path: str | Path | None, model: str | None = None) -> Path:
    """The checkpoint that would be loaded; an official file has its official size, or is refused.

    Parameters
    ----------
    path : given by the user; None: looked for in `CRYOSAM_CHECKPOINTS`, see `find_sam`

    Raises
    ------
    InputError, NotFoundError, DataError
        No such model, no such file, or an official file of another size.
    """
    found = find_sam(model) if path is None else Path(path).expanduser()
    size = file_size(found)
    for entry in SAMS.values():
        if found.name == entry.file and size != entry.size:
            raise DataError(
                f"checkpoint {found}: expected {entry.size} bytes, found {size}",
                hint=f"Download {entry.url} again, or give weights of your own another name",
            )
    return found


def recognise_sam(state: Mapping[str, Tensor], source: str = "SAM checkpoint") -> SamKind:
    """Which SAM the tensors are, from all their names and shapes.

    Parameters
    ----------
    source : how a message names the tensors

    Raises
    ------
    DataError
        They are no SAM that is known; the message names the first tensor that differs.
    """
    relative = next((name for key, name in _RELATIVES.items() if key in state), None)
    hint = "Use an official checkpoint of segment-anything; `copick cryosam models` lists them"
    shape = tuple(state[_POSITION].shape) if _POSITION in state else ()
    kind = next((entry.kind for entry in SAMS.values() if shape[-1:] == (entry.width,)), None)
    if kind is None:
        seen = f"{_POSITION} of shape {shape}" if shape else f"no tensor {_POSITION}"
        raise DataError(f"{source}: expected the original SAM ({', '.join(SAMS)}), found {relative or seen}", hint=hint)
    expected = _shapes(kind)
    for key, shape in expected.items():
        found = state.get(key)
        if found is None or tuple(found.shape) != shape or not found.is_floating_point():
            seen = "none" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise DataError(f"{source}: expected the tensor {key} {shape} of SAM {kind}, found {seen}", hint=hint)
    extra = next((key for key in state if key not in expected), None)
    if extra is not None:
        named = f"{relative}, with " if relative else ""
        raise DataError(f"{source}: expected only the tensors of SAM {kind}, found {named}{extra}", hint=hint)
    return kind


def identify_sam(path: str | Path | None, model: str | None = None) -> tuple[Path, SamKind]:
    """The checkpoint that `load_sam` would load, and its kind; its SHA-256 is not looked at.

    Raises
    ------
    As of `load_sam`.
    """
    found, kind, _ = _read(path, model)
    return found, kind


def load_sam(path: str | Path | None = None, model: str | None = None) -> LoadedSam:
    """SAM from a checkpoint; see `sam_checkpoint` for what is looked for.

    Raises
    ------
    NotFoundError
        No such file, or segment-anything is not installed.
    InputError
        No such model.
    DataError
        See `read_state` and `recognise_sam`; or the file is of another kind than `model`, or bears an official
        name and has another size or SHA-256.
    """
    found, kind, state = _read(path, model)
    digest = file_sha256(found)
    for entry in SAMS.values():
        if found.name == entry.file and digest != entry.sha256:
            raise DataError(
                f"checkpoint {found}: expected the SHA-256 {entry.sha256}, found {digest}",
                hint=f"Download {entry.url} again, or give weights of your own another name",
            )
    return LoadedSam(sam=_build(kind, state), kind=kind, path=found, signature=f"sam-{kind}-{digest[:12]}")


def _read(path: str | Path | None, model: str | None) -> tuple[Path, SamKind, dict[str, Tensor]]:
    found = sam_checkpoint(path, model)
    state = read_state(found)
    kind = recognise_sam(state, f"checkpoint {found}")
    if model not in (None, kind):
        raise DataError(
            f"checkpoint {found}: expected SAM {model}, found SAM {kind}",
            hint=f"Give the checkpoint of SAM {model}, or set segmenter: {{model: {kind}}} in a --settings file",
        )
    return found, kind, state


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; remembered until its size or time of change differs."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _shapes(kind: SamKind) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a SAM."""
    return {key: tuple(value.shape) for key, value in _empty(kind).state_dict().items()}


def _empty(kind: SamKind) -> nn.Module:
    """The official modules without memory for their weights."""
    with torch.device("meta"):
        sam: nn.Module = official("build_sam").sam_model_registry[kind]()
    return sam


def _build(kind: SamKind, state: Mapping[str, Tensor]) -> nn.Module:
    """SAM that uses the tensors of `state` as they are; only those of other types than float32 are copied."""
    sam = _empty(kind)
    sam.load_state_dict({key: value.float() for key, value in state.items()}, strict=True, assign=True)
    # These two are in no checkpoint.
    sam.pixel_mean = torch.tensor(_PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(_PIXEL_STD).view(-1, 1, 1)
    for name, value in itertools.chain(sam.named_parameters(), sam.named_buffers()):
        if value.is_meta:
            raise RuntimeError(f"SAM {kind}: {name} has no values")
    return sam.requires_grad_(False).eval()
