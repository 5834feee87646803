"""What storage can do wrong, and files that appear whole or not at all.

A project's files may lie on a disk, in an object store or behind SSH; copick hides which, and so does
everything here.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["delete_file", "read_json", "reason", "storage_errors", "try_writing", "write_json"]


@cache
def storage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What the file systems raise when data cannot be reached, and `others` after it.

    Object stores have error classes of their own for missing credentials and the like, and file systems
    without write access (HTTP) say NotImplementedError.
    """
    s3 = import_module("botocore.exceptions")
    return (OSError, NotImplementedError, s3.BotoCoreError, s3.ClientError, *others)


def reason(error: BaseException) -> str:
    """One line on why storage failed."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def write_json(fs: Any, path: str, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees all of it or nothing.

    A local file is renamed into place; an object store makes an upload visible only when it is complete.
    """
    data = (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "file" not in protocols:
        fs.pipe_file(path, data)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def read_json(fs: Any, path: str) -> dict[str, Any] | None:
    """The content of a JSON file; None where it is missing or no JSON object."""
    try:
        content = json.loads(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def delete_file(fs: Any, path: str) -> None:
    """Delete a file; one that is missing is no error."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def try_writing(fs: Any, folder: str) -> None:
    """Write a small file in `folder` and take it away again, with every folder made for it.

    Raises
    ------
    One of `storage_errors`
        The folder cannot be written.
    """
    made = []
    above = folder.rstrip("/")
    while above.strip("/") and not fs.exists(above):
        made.append(above)
        if "/" not in above:
            break
        above = above.rsplit("/", 1)[0]
    probe = f"{folder}/probe-{uuid.uuid4().hex}"
    try:
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    finally:
        for each in made:
            with contextlib.suppress(*storage_errors()):
                fs.rmdir(each)
