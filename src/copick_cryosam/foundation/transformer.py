"""Vision transformers of Hugging Face, loaded as safetensors through transformers' own model classes.

A model is named by a short name of the catalogue, by its Hugging Face name with the commit to use, or by a local
folder. No code of a repository is ever run, and pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from copick_cryosam.errors import DataError, InputError, NotFoundError
from copick_cryosam.foundation.catalogue import (
    VARIABLE,
    TransformerEntry,
    cached_transformer,
    checkpoint_folders,
    find_transformer,
    transformer_entry,
)
from copick_cryosam.foundation.checkpoints import file_sha256

__all__ = ["SUPPORTED", "LoadedTransformer", "load_transformer", "transformer_folder"]

SUPPORTED = {
    "vit": "DINO",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
}
"""Model types of transformers that are understood, and what they are called."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WANTED = ["config.json", _WEIGHTS, _INDEX, "model-*.safetensors"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_UNUSED = ("pooler.", "embeddings.mask_token")
"""Weights that tokens do not depend on; some checkpoints lack them."""
_SAVE_AGAIN = "AutoModel.from_pretrained(OLD).save_pretrained(NEW)"


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedTransformer:
    """A vision transformer with its weights.

    Attributes
    ----------
    model : of transformers: evaluation mode, float32, on the CPU, with fused attention
    name : short name, or the last part of the Hugging Face name or folder
    signature : ``<name>-<first 12 digits of the SHA-256 of the weights>``
    patch : edge of a patch, pixels
    prefix : tokens before those of the patches: the class token and the registers
    channels : length of a token
    """

    model: nn.Module
    name: str
    signature: str
    patch: int
    prefix: int
    channels: int


def load_transformer(name: str, revision: str | None = None) -> LoadedTransformer:
    """Load a vision transformer.

    Parameters
    ----------
    name : short name of the catalogue, Hugging Face name, or path of a folder with ``config.json`` and safetensors
    revision : commit of a Hugging Face name; None: the one pinned in the catalogue

    Raises
    ------
    InputError
        A Hugging Face name outside the catalogue without a commit.
    NotFoundError
        No such folder, or neither on this machine nor to be downloaded; or transformers is not installed.
    DataError
        Another kind of model, pickled weights, or weights that are damaged or do not fit the model.
    """
    folder = transformer_folder(name, revision)
    config = _read_config(folder)
    weights = _weight_files(folder)
    model = _build(folder)
    entry = transformer_entry(name)
    called = entry.name if entry is not None else Path(name).resolve().name
    return LoadedTransformer(
        model=model,
        name=called,
        signature=f"{called}-{_digest(weights)}",
        patch=_patch(config, folder),
        prefix=1 + int(getattr(model.config, "num_register_tokens", 0)),
        channels=int(model.config.hidden_size),
    )


def transformer_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds a transformer, after downloading it where it is not on this machine.

    Looked at in this order: a folder of that path, `CRYOSAM_CHECKPOINTS` (unless a revision is asked for), the cache
    of Hugging Face, Hugging Face itself. Errors are those of `load_transformer`.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    if place.exists():
        raise DataError(
            f"encoder {name}: expected a folder with config.json and {_WEIGHTS}, found a file",
            hint="Give the folder that holds it",
        )
    found = find_transformer(name) if revision is None else None
    if found is not None:
        return found
    entry = transformer_entry(name)
    if entry is None and not _HUB_NAME.fullmatch(name):
        raise NotFoundError(
            f"encoder: expected the folder {name}, found no such folder",
            hint="Check the path, or give a short name; `copick cryosam models` lists them",
        )
    return _from_hub(name, entry, revision)


def _from_hub(name: str, entry: TransformerEntry | None, revision: str | None) -> Path:
    hub_id = name if entry is None else entry.hub_id
    commit = revision or (None if entry is None else entry.revision)
    if commit is None:
        raise InputError(
            f"encoder.revision: expected the commit of {name} to use, found none",
            hint=f"Set it to a commit of https://huggingface.co/{name}/commits/main, or use a short name",
        )
    if entry is not None and revision is None:
        if entry.pickled:
            raise _pickled(f"{hub_id} at {commit[:12]}", entry.weights)
        cached = cached_transformer(entry)
        if cached is not None:
            return cached
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise _not_installed("huggingface-hub") from None
    # what the connection raises has a class of its own, and which one depends on the version
    failures = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        return Path(snapshot_download(hub_id, revision=commit, allow_patterns=_WANTED))
    except failures as error:
        folders = ", ".join(map(str, checkpoint_folders())) or f"no folder, as {VARIABLE} is not set"
        gated = " after accepting its licence there" if entry is not None and entry.gated else ""
        raise NotFoundError(
            f"encoder {name}: expected {hub_id} at {commit[:12]}, found it neither in {VARIABLE} ({folders}) nor in "
            f"the cache of Hugging Face ({constants.HF_HUB_CACHE}), and downloading failed ({_reason(error)})",
            hint=f"Download config.json and {_WEIGHTS} from https://huggingface.co/{hub_id}/tree/{commit}{gated}, on "
            f"another machine if need be, into a folder {name.rsplit('/', 1)[-1]}; give its path as encoder, or set "
            f"{VARIABLE} to the folder above it",
        ) from None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(
            f"encoder {folder}: expected config.json and {_WEIGHTS}, found no config.json",
            hint="Give a folder as transformers saves it",
        ) from None
    except (OSError, ValueError):
        config = None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in SUPPORTED:
        known = ", ".join(f"{each} ({label})" for each, label in SUPPORTED.items())
        raise DataError(
            f"encoder {folder}: expected a model of type {known}, found {kind or 'no type in config.json'}",
            hint="Use one of these; `copick cryosam models` lists them",
        )
    return dict(config)


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights, which are there; large models come in parts."""
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            parts = sorted({folder / Path(part).name for part in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"encoder {folder}: expected {_INDEX} with a weight_map, found a damaged one",
                hint="Download the folder again",
            ) from None
        missing = [part.name for part in parts if not part.is_file()]
        if missing:
            raise NotFoundError(
                f"encoder {folder}: expected {len(parts)} files of weights, found {', '.join(missing)} missing",
                hint="Download the folder again",
            )
        return parts
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    if pickles:
        raise _pickled(f"the folder {folder}", pickles[0])
    raise NotFoundError(f"encoder {folder}: expected {_WEIGHTS}, found none", hint="Download it into the folder")


def _build(folder: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise _not_installed("transformers") from None
    from safetensors import SafetensorError

    try:
        with _quiet(transformers):
            model, report = transformers.AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        raise DataError(
            f"encoder {folder}: expected weights that fit its config.json, found {_reason(error)}",
            hint="Download the folder again",
        ) from None
    # transformers fills what is missing with random numbers
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise DataError(
            f"encoder {folder}: expected weights for the whole model, found none for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint="Give the checkpoint of the whole model",
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own progress bar and its notes on weights that are not used."""
    logging = transformers.utils.logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _patch(config: dict[str, Any], folder: Path) -> int:
    size, colours = config.get("patch_size", 16), config.get("num_channels", 3)
    edges = set(size) if isinstance(size, list) else {size}
    if len(edges) != 1 or colours != 3:
        raise DataError(
            f"encoder {folder}: expected square patches of 3 channels, found {size} of {colours}",
            hint="Use a model for colour pictures",
        )
    return int(edges.pop())


def _digest(files: list[Path]) -> str:
    if len(files) == 1:
        return file_sha256(files[0])[:12]
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()[:12]


def _pickled(where: str, file: str) -> DataError:
    return DataError(
        f"encoder: expected {_WEIGHTS}, found only pickled weights ({file}) in {where}; a pickle can run code",
        hint=f"Save it again where you trust it, with transformers: {_SAVE_AGAIN}, and give the new folder",
    )


def _not_installed(package: str) -> NotFoundError:
    return NotFoundError(
        f"{package}: expected the package, found none", hint='pip install "copick-cryosam[foundation]"'
    )


def _reason(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")[:160].rstrip(" .")
    return first or type(error).__name__
