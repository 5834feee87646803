"""SAM 2 from a folder or Hugging Face, as safetensors through transformers' own `Sam2Model`.

It is named by a short name of the catalogue, by a local folder, or as ``NAME@COMMIT`` by its Hugging Face name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from copick_cryosam.errors import DataError
from copick_cryosam.foundation.catalogue import find_sam2, sam2_entry
from copick_cryosam.foundation.hub import Role, build, model_folder, read_config, weight_files, weights_digest

__all__ = ["DEFAULT", "LoadedSam2", "load_sam2", "sam2_folder", "sam2_name"]

DEFAULT = "sam2.1-large"
"""The SAM 2 that is used where none is named."""

# The published ones are for videos; what pictures need is the same, under the same names.
_KINDS = {"sam2": "SAM 2", "sam2_video": "SAM 2 for videos"}
_ROLE = Role(
    setting="segmenter.checkpoint",
    commit="segmenter.checkpoint",
    commit_hint="Write {name}@COMMIT with",
    kinds=_KINDS,
    saving="Sam2Model.from_pretrained(OLD).save_pretrained(NEW)",
)
_POSITIONS = "shared_image_embedding.positional_embedding"
_POSITIONS_AGAIN = "prompt_encoder.shared_embedding.positional_embedding"
"""The same numbers; some versions of transformers save them once."""
_STRIDE = 16
"""Pixels along the edge of a coarsest feature, four low-resolution logits wide, and so for all published ones."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedSam2:
    """SAM 2 with its weights.

    Attributes
    ----------
    model : transformers' `Sam2Model`: evaluation mode, float32, on the CPU, with fused attention
    name : short name, or the last part of the Hugging Face name or folder
    signature : ``<name>-<first 12 digits of the SHA-256 of the weights>``
    """

    model: nn.Module
    name: str
    signature: str


def load_sam2(checkpoint: str | None = None) -> LoadedSam2:
    """Load SAM 2.

    Parameters
    ----------
    checkpoint : short name of the catalogue, ``NAME@COMMIT`` of Hugging Face, or path of a folder with
        ``config.json`` and safetensors; None: `DEFAULT`

    Raises
    ------
    InputError
        A Hugging Face name outside the catalogue without a commit.
    NotFoundError
        No such folder, or neither on this machine nor to be downloaded; or transformers is not installed.
    DataError
        Another kind of model, pickled weights, or weights that are damaged or do not fit the model.
    """
    folder = sam2_folder(checkpoint)
    read_config(folder, _ROLE)
    weights = weight_files(folder, _ROLE)
    model, lacking = build(folder, "Sam2Model", (_POSITIONS_AGAIN,), _ROLE)
    if _POSITIONS_AGAIN in lacking:
        model.get_buffer(_POSITIONS_AGAIN).copy_(model.get_buffer(_POSITIONS))
    _check(model, folder)
    name, _ = sam2_name(checkpoint)
    entry = sam2_entry(name)
    called = entry.name if entry is not None else Path(name).resolve().name
    return LoadedSam2(model=model, name=called, signature=f"{called}-{weights_digest(weights)}")


def sam2_folder(checkpoint: str | None) -> Path:
    """The folder that holds a SAM 2, after downloading it where it is not on this machine.

    Looked at in this order: a folder of that path, `CRYOSAM_CHECKPOINTS` (unless a commit is given), the cache of
    Hugging Face, Hugging Face itself. Errors are those of `load_sam2`.
    """
    name, revision = sam2_name(checkpoint)
    return model_folder(name, revision, sam2_entry(name), find_sam2, _ROLE)


def sam2_name(checkpoint: str | None) -> tuple[str, str | None]:
    """Name or path, and the commit if one is given, of what `SegmenterSettings.checkpoint` holds."""
    if checkpoint is None:
        return DEFAULT, None
    name, _, revision = checkpoint.partition("@")
    # A folder may have that sign in its path.
    return (name, revision) if revision and not Path(checkpoint).expanduser().exists() else (checkpoint, None)


def _check(model: Any, folder: Path) -> None:
    prompts = model.config.prompt_encoder_config
    masks = model.config.mask_decoder_config.num_multimask_outputs
    if (prompts.patch_size, masks) != (_STRIDE, 3):
        raise DataError(
            f"segmenter.checkpoint {folder}: expected a feature for {_STRIDE} pixels and 3 masks for a prompt, found "
            f"{prompts.patch_size} and {masks}",
            hint="Use a published SAM 2; `copick cryosam models` lists them",
        )
