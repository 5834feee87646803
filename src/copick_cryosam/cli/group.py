"""`copick cryosam`: the commands that belong to no group of copick."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["LazyGroup", "cryosam"]

_COMMANDS = {
    "demo": ("copick_cryosam.cli.demo:demo", "Make a small simulated project, pick in it and score the picks."),
    "discover": (
        "copick_cryosam.cli.discover:discover",
        "Find particles of every kind without a seed, grouped by what they look like.",
    ),
    "embed": ("copick_cryosam.cli.process:cryosam_embed", "Embed tomograms once: every object is found faster."),
    "info": ("copick_cryosam.cli.info:info", "Show versions, devices and the models that are found."),
    "models": ("copick_cryosam.cli.models:models", "List models: size, licence, where they are and where to get them."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, name = _COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in sorted(_COMMANDS)])


@click.group(name="cryosam", cls=LazyGroup, short_help="CryoSAM: demonstration and information.", no_args_is_help=True)
def cryosam() -> None:
    """CryoSAM: one labelled particle in one tomogram, and every particle like it.

    \b
    See Also:
        copick inference cryosam: picks particles from one seed
        copick process cryosam-embed: the same as embed here
        copick training sasi: trains a detector of several objects from a few points of each
        copick inference sasi: finds the objects of a trained detector
        copick evaluation localization: scores picks against true picks
    """
