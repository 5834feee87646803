"""Options that several commands have, and what was given of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click_option_group import optgroup

__all__ = ["device_option", "stated"]


def device_option(default: str | None = None) -> Callable[[Any], Any]:
    """`--device`; without a default it is the settings that say where to compute."""
    text = (
        "Where to compute.  [default: auto, a GPU if any]"
        if default is None
        else "Where to compute; auto: a GPU if any."
    )
    decorator: Callable[[Any], Any] = optgroup.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default=default, help=text
    )
    return decorator


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values without those that nobody gave, which are None."""
    nested = {name: stated(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in nested.items() if value is not None}
