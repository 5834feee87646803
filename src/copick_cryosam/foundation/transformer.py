"""Vision transformers of Hugging Face, loaded as safetensors through transformers' own model classes.

A model is named by a short name of the catalogue, by its Hugging Face name with the commit to use, or by a local
folder. No code of a repository is ever run, and pickled weights are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from copick_cryosam.errors import DataError
from copick_cryosam.foundation.catalogue import find_transformer, transformer_entry
from copick_cryosam.foundation.hub import Role, build, model_folder, read_config, weight_files, weights_digest

__all__ = ["SUPPORTED", "LoadedTransformer", "load_transformer", "transformer_folder"]

SUPPORTED = {
    "vit": "DINO",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
}
"""Model types of transformers that are understood, and what they are called."""

_UNUSED = ("pooler.", "embeddings.mask_token")
"""Weights that tokens do not depend on; some checkpoints lack them."""
_ROLE = Role(
    setting="encoder",
    commit="encoder.revision",
    commit_hint="Set it to",
    kinds=SUPPORTED,
    saving="AutoModel.from_pretrained(OLD).save_pretrained(NEW)",
)


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
    config = read_config(folder, _ROLE)
    weights = weight_files(folder, _ROLE)
    model, _ = build(folder, "AutoModel", _UNUSED, _ROLE)
    entry = transformer_entry(name)
    called = entry.name if entry is not None else Path(name).resolve().name
    return LoadedTransformer(
        model=model,
        name=called,
        signature=f"{called}-{weights_digest(weights)}",
        patch=_patch(config, folder),
        prefix=1 + int(getattr(model.config, "num_register_tokens", 0)),
        channels=int(model.config.hidden_size),
    )


def transformer_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds a transformer, after downloading it where it is not on this machine.

    Looked at in this order: a folder of that path, `CRYOSAM_CHECKPOINTS` (unless a revision is asked for), the cache
    of Hugging Face, Hugging Face itself. Errors are those of `load_transformer`.
    """
    return model_folder(name, revision, transformer_entry(name), find_transformer, _ROLE)


def _patch(config: dict[str, Any], folder: Path) -> int:
    size, colours = config.get("patch_size", 16), config.get("num_channels", 3)
    edges = set(size) if isinstance(size, list) else {size}
    if len(edges) != 1 or colours != 3:
        raise DataError(
            f"encoder {folder}: expected square patches of 3 channels, found {size} of {colours}",
            hint="Use a model for colour pictures",
        )
    return int(edges.pop())
