"""Backends by name: a module with a factory each, imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from copick_cryosam.errors import InputError


def create(kind: str, backends: Mapping[str, str], name: str, *arguments: Any) -> Any:
    """Import the backend `name` of `backends` (``module:factory`` by name) and call its factory.

    Raises
    ------
    InputError
        No such backend; the message names the ones there are.
    """
    if name not in backends:
        raise InputError(
            f"{kind}: expected one of {', '.join(sorted(backends))}, found {name!r}",
            hint=f"Choose one of these {kind}s",
        )
    module, factory = backends[name].split(":")
    return getattr(import_module(module), factory)(*arguments)
