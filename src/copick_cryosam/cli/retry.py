"""The command that was called, written out again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click
from click.core import ParameterSource

__all__ = ["command_line"]


def command_line(context: click.Context, runs: Sequence[str] | None = None) -> str:
    """The command with the options given on the command line, quoted for a shell.

    Parameters
    ----------
    runs : given with ``-r`` in place of the runs that were asked for; None: as they were
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name == "run_names" and runs is not None:
            value = tuple(runs)
        elif context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        flag = min(parameter.opts, key=len)
        if isinstance(value, bool):
            off = parameter.secondary_opts
            words.append(max(parameter.opts if value or not off else off, key=len))
        else:
            for each in value if isinstance(value, tuple) else (value,):
                words += [flag, str(each)]
    return shlex.join(words)
