"""How commands report what went wrong: one line, and a code that is not zero."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar

import click

from copick_cryosam.errors import CryosamError

__all__ = ["OneLineError", "one_line_errors"]

P = ParamSpec("P")
R = TypeVar("R")


class OneLineError(click.ClickException):
    """A `CryosamError` on its way out of a command: `Error: <message>. <hint>`, exit code 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {' '.join(self.format_message().split())}", err=file is None, file=file)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `CryosamError` of a command into one line on stderr and exit code 1.

    Apply it below the options, next to the function. Where the command has a `debug` parameter and it is on,
    the traceback is logged too. Every other exception passes: it is a fault of the program and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CryosamError as error:
            if kwargs.get("debug"):
                logging.getLogger(command.__module__).error("%s", error, exc_info=True)
            raise OneLineError(str(error)) from None

    return wrapped
