"""Folders of models as Hugging Face keeps them: found, downloaded at a pinned commit, and read without running code.

Only safetensors are read; pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from copick_cryosam.errors import DataError, InputError, NotFoundError
from copick_cryosam.foundation.catalogue import VARIABLE, HubEntry, cached_transformer, checkpoint_folders
from copick_cryosam.foundation.checkpoints import file_sha256

__all__ = ["Role", "build", "model_folder", "read_config", "weight_files", "weights_digest"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WANTED = ["config.json", _WEIGHTS, _INDEX, "model-*.safetensors"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a model is wanted for, for the messages.

    Attributes
    ----------
    setting : names the model
    commit : the setting that holds the commit of a Hugging Face name
    commit_hint : how to give it; ``{name}`` stands for the Hugging Face name
    kinds : model types of transformers that are understood, and what they are called
    saving : how transformers saves such a model again
    """

    setting: str
    commit: str
    commit_hint: str
    kinds: Mapping[str, str]
    saving: str


def model_folder(
    name: str,
    revision: str | None,
    entry: HubEntry | None,
    find: Callable[[str], Path | None],
    role: Role,
) -> Path:
    """The folder that holds a model, after downloading it where it is not on this machine.

    Looked at in this order: a folder of that path, `CRYOSAM_CHECKPOINTS` (unless a revision is asked for), the cache
    of Hugging Face, Hugging Face itself.

    Parameters
    ----------
    name : short name, Hugging Face name or path
    revision : commit of a Hugging Face name; None: the one of `entry`
    entry : of the catalogue; None: the name is not in it
    find : looks for a name in `CRYOSAM_CHECKPOINTS`

    Raises
    ------
    InputError, NotFoundError, DataError
        No commit, no such folder, not to be downloaded, or a file or a pickle where a folder is expected.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    if place.exists():
        raise DataError(
            f"{role.setting} {name}: expected a folder with config.json and {_WEIGHTS}, found a file",
            hint="Give the folder that holds it; a SAM checkpoint is --encoder sam with --sam-checkpoint FILE",
        )
    found = find(name) if revision is None else None
    if found is not None:
        return found
    if entry is None and not _HUB_NAME.fullmatch(name):
        raise NotFoundError(
            f"{role.setting}: expected the folder {name}, found no such folder",
            hint="Check the path, or give a short name; `copick cryosam models` lists them",
        )
    return _from_hub(name, entry, revision, role)


def _from_hub(name: str, entry: HubEntry | None, revision: str | None, role: Role) -> Path:
    hub_id = name if entry is None else entry.hub_id
    commit = revision or (None if entry is None else entry.revision)
    if commit is None:
        raise InputError(
            f"{role.commit}: expected the commit of {name} to use, found none",
            hint=f"{role.commit_hint.format(name=name)} a commit of https://huggingface.co/{name}/commits/main, or use "
            "a short name",
        )
    if entry is not None and revision is None:
        if entry.pickled:
            raise _pickled(f"{hub_id} at {commit[:12]}", entry.weights, role)
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
        with _one_message():
            return Path(snapshot_download(hub_id, revision=commit, allow_patterns=_WANTED))
    except failures as error:
        folders = ", ".join(map(str, checkpoint_folders())) or f"no folder, as {VARIABLE} is not set"
        gated = " after accepting its licence there" if entry is not None and entry.gated else ""
        raise NotFoundError(
            f"{role.setting} {name}: expected {hub_id} at {commit[:12]}, found it neither in {VARIABLE} ({folders}) "
            f"nor in the cache of Hugging Face ({constants.HF_HUB_CACHE}), and downloading failed ({_reason(error)})",
            hint=f"Download config.json and {_WEIGHTS} from https://huggingface.co/{hub_id}/tree/{commit}{gated}, on "
            f"another machine if need be, into a folder {name.rsplit('/', 1)[-1]}; give its path as {role.setting}, or "
            f"set {VARIABLE} to the folder above it",
        ) from None


def read_config(folder: Path, role: Role) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises
    ------
    NotFoundError, DataError
        It is not there, or the model is none of `role.kinds`.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(
            f"{role.setting} {folder}: expected config.json and {_WEIGHTS}, found no config.json",
            hint="Give a folder as transformers saves it",
        ) from None
    except (OSError, ValueError):
        config = None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in role.kinds:
        known = ", ".join(f"{each} ({label})" for each, label in role.kinds.items())
        raise DataError(
            f"{role.setting} {folder}: expected a model of type {known}, found {kind or 'no type in config.json'}",
            hint="Use one of these; `copick cryosam models` lists them",
        )
    return dict(config)


def weight_files(folder: Path, role: Role) -> list[Path]:
    """The files of the weights, which are there; large models come in parts.

    Raises
    ------
    NotFoundError, DataError
        None or not all are there, their index is damaged, or there are only pickled ones.
    """
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            parts = sorted({folder / Path(part).name for part in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"{role.setting} {folder}: expected {_INDEX} with a weight_map, found a damaged one",
                hint="Download the folder again",
            ) from None
        missing = [part.name for part in parts if not part.is_file()]
        if missing:
            raise NotFoundError(
                f"{role.setting} {folder}: expected {len(parts)} files of weights, found {', '.join(missing)} missing",
                hint="Download the folder again",
            )
        return parts
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    if pickles:
        raise _pickled(f"the folder {folder}", pickles[0], role)
    raise NotFoundError(f"{role.setting} {folder}: expected {_WEIGHTS}, found none", hint="Download it into the folder")


def build(folder: Path, model_class: str, dispensable: tuple[str, ...], role: Role) -> tuple[Any, list[str]]:
    """The folder's model in evaluation mode, float32, on the CPU, with fused attention; and the weights it lacks.

    Parameters
    ----------
    model_class : of transformers, such as ``"AutoModel"``
    dispensable : beginnings of the names of weights that may be missing; those that are, are returned

    Raises
    ------
    NotFoundError
        transformers is not installed.
    DataError
        The weights are damaged, do not fit the config, or others than the dispensable ones are missing.
    """
    try:
        import transformers
    except ImportError:
        raise _not_installed("transformers") from None
    from safetensors import SafetensorError

    try:
        with _quiet(transformers):
            model, report = getattr(transformers, model_class).from_pretrained(
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
            f"{role.setting} {folder}: expected weights that fit its config.json, found {_reason(error)}",
            hint="Download the folder again",
        ) from None
    # transformers fills what is missing with random numbers
    lacking = sorted(report["missing_keys"])
    missing = [key for key in lacking if not key.startswith(dispensable)]
    if missing:
        raise DataError(
            f"{role.setting} {folder}: expected weights for the whole model, found none for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint="Give the checkpoint of the whole model",
        )
    return model.eval().requires_grad_(False), lacking


def weights_digest(files: list[Path]) -> str:
    """The first 12 digits of the SHA-256 of the weights; of their SHA-256 where there are several files."""
    if len(files) == 1:
        return file_sha256(files[0])[:12]
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()[:12]


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


def _pickled(where: str, file: str, role: Role) -> DataError:
    return DataError(
        f"{role.setting}: expected {_WEIGHTS}, found only pickled weights ({file}) in {where}; a pickle can run code",
        hint=f"Save it again where you trust it, with transformers: {role.saving}, and give the new folder",
    )


def _not_installed(package: str) -> NotFoundError:
    return NotFoundError(
        f"{package}: expected the package, found none", hint='pip install "copick-cryosam[foundation]"'
    )


@contextmanager
def _one_message() -> Iterator[None]:
    """Without the warnings of huggingface_hub for each file and each try: a failure is told once, by our error."""
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(before)


def _reason(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")[:160].rstrip(" .")
    return first or type(error).__name__
