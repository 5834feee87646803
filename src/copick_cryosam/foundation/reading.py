"""Checkpoints read without running anything that is in them.

Torch files are unpickled as tensors only, safetensors hold nothing else. What cannot be used is refused with
the file, what was expected and what was found.
"""

from __future__ import annotations

import io
import itertools
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from copick_cryosam.errors import DataError, NotFoundError

__all__ = ["file_size", "read_state"]

_AGAIN = "Download the file again, or give another one"
_UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
"""What torch and zipfile raise on files that are cut short, damaged or something else."""
_NESTED = ("model", "state_dict", "model_state_dict", "model_state")
"""Keys under which training scripts keep a model's tensors."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and mapped from the file, not copied, where that is possible.

    Read are safetensors (by the suffix) and torch files, which may hold the tensors under one key such as
    ``state_dict``. Nothing in the file is run.

    Raises
    ------
    NotFoundError
        No such file.
    DataError
        A folder; empty, cut short or damaged; no torch file; would run code; holds no or other things than tensors.
    """
    path = Path(path).expanduser()
    size = file_size(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(b"PK"):
        content = _read_zip(path, size)
    elif start.startswith(b"\x80") and not _is_safetensors(start):
        # Not a zip file: torch wrote such before version 1.6. They cannot be mapped.
        content = _load(path, mmap=False)
    else:
        raise DataError(f"checkpoint {path}: expected a torch file, found {_looks_like(start)}", hint=_AGAIN)
    return _tensors(content, path)


def file_size(path: Path) -> int:
    """Bytes of a file that is there, readable and not empty."""
    if path.is_dir():
        raise DataError(f"checkpoint {path}: expected a file, found a folder", hint="Give the file in it")
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
    except FileNotFoundError:
        raise NotFoundError(
            f"checkpoint: expected {path}, found no such file",
            hint="Check the path; `copick cryosam models` says where to get checkpoints",
        ) from None
    except OSError as error:
        raise DataError(
            f"checkpoint {path}: expected a readable file, found {error.strerror}", hint="Check the path and its rights"
        ) from None
    if size == 0:
        raise DataError(f"checkpoint {path}: expected weights, found an empty file", hint=_AGAIN)
    return size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path, device="cpu")
    except (SafetensorError, *_UNREADABLE) as error:
        raise DataError(
            f"checkpoint {path}: expected whole safetensors, found {_first_line(error)}", hint=_AGAIN
        ) from None
    return _tensors(state, path)


def _read_zip(path: Path, size: int) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except _UNREADABLE:
        raise DataError(
            f"checkpoint {path}: expected a whole torch file, found {size} bytes that end too early", hint=_AGAIN
        ) from None
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    content = _load(path, mmap=stored)
    # A map of the file has no ends of its own: a storage cut short would go on into the next one.
    sizes = Counter(record.file_size for record in records)
    wanted = Counter(_storage_sizes(content).values())
    if any(count > sizes[of_bytes] for of_bytes, count in wanted.items()):
        raise DataError(f"checkpoint {path}: expected whole tensors, found some that are cut short", hint=_AGAIN)
    return content


def _storage_sizes(content: Any) -> dict[int, int]:
    """Bytes of every storage under a content, by address."""
    if isinstance(content, Tensor):
        storage = content.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()} if storage.nbytes() else {}
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return {address: size for each in inside for address, size in _storage_sizes(each).items()}


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of old formats and pickle protocols; what it then cannot read is refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _UNREADABLE as error:
        called = re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+\.\w+)", str(error))
        if called:
            raise DataError(
                f"checkpoint {path}: expected tensors only, found a pickle that calls {called[1]}; it is refused "
                "because it would run code, and nothing was run",
                hint="Use the official file, or one that its maker saved again as tensors only",
            ) from None
        # torch begins what it says of a pickle with advice that does not apply here
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = ", of which nothing was run" if pickled else f" ({_first_line(error)})"
        raise DataError(
            f"checkpoint {path}: expected a whole torch file, found a damaged or foreign one{reason}", hint=_AGAIN
        ) from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors that a file holds, or the only one that it holds under a usual key."""
    if isinstance(content, dict):
        if _is_state(content):
            return dict(content)
        nested = [key for key in _NESTED if _is_state(content.get(key))]
        if len(nested) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            return dict(content[nested[0]])
    found = _contents(content)
    raise DataError(
        f"checkpoint {path}: expected a dictionary of tensors, found {found}",
        hint="Give a file that holds the model's tensors only",
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _contents(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = ", ".join(f"{key} ({type(value).__name__})" for key, value in itertools.islice(content.items(), 3))
    more = f" and {len(content) - 3} more" if len(content) > 3 else ""
    return f"the keys {keys}{more}" if content else "an empty one"


def _looks_like(start: bytes) -> str:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return "a web page"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the file itself"
    if _is_safetensors(start):
        return "safetensors under another suffix"
    return f"one that begins with {start[:8]!r}"


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a JSON header, eight bytes, and the header."""
    return start[8:9] == b"{"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:120].rstrip(" .") or type(error).__name__
