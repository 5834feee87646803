"""The command that is shown can be pasted."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from copick_cryosam.cli.retry import command_line


@click.group(name="copick")
def root() -> None:
    """A command line like copick's."""


@root.command()
@click.option("-c", "--config", envvar="TEST_CONFIG")
@click.option("--run-names", "-r", multiple=True)
@click.option("-os", "--output-segmentation", "segmentation")
@click.option("--number", default=3)
@click.option("--overwrite/--no-overwrite", default=False)
@click.option("--points-only", is_flag=True)
@click.pass_context
def pick(context: click.Context, **_: object) -> None:
    click.echo(command_line(context))
    click.echo(command_line(context, ["TS 4", "TS_5"]))


@pytest.mark.parametrize(
    ("given", "same", "retried"),
    [
        ("pick", "pick", "pick -r 'TS 4' -r TS_5"),
        ("pick --number=4 -rTS_1 -r TS_2", "pick -r TS_1 -r TS_2 --number 4", "pick -r 'TS 4' -r TS_5 --number 4"),
        ("pick -c 'a b.json' --points-only", "pick -c 'a b.json' --points-only", None),
        ("pick --no-overwrite -os x:y/1@10", "pick -os x:y/1@10 --no-overwrite", None),
        ("pick --overwrite --number 3", "pick --number 3 --overwrite", None),
    ],
)
def test_given_options_only(given: str, same: str, retried: str | None) -> None:
    result = CliRunner().invoke(root, shlex.split(given), prog_name="copick", env={"TEST_CONFIG": "unseen.json"})
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    assert first == f"copick {same}"
    assert retried is None or second == f"copick {retried}"
    again = CliRunner().invoke(root, shlex.split(first)[1:], prog_name="copick")
    assert again.output.splitlines()[0] == first
