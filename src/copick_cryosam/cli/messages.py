"""Lines and checks that several commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from copick_cryosam.compute import PlannedRun

__all__ = ["print_planned_run", "print_stale", "report_file"]


def report_file(path: str | None, what: str = "report") -> Path | None:
    """Where a report, or another file, goes; None where none is wanted.

    Raises
    ------
    OutputError
        Its folder is not there.
    """
    from copick_cryosam.errors import OutputError

    report = None if path is None else Path(path)
    if report is not None and not report.absolute().parent.is_dir():
        raise OutputError(f"{what} {report}: expected an existing folder", hint="Make the folder or choose another")
    return report


def print_planned_run(one: PlannedRun) -> None:
    """A run of a dry run: its tomogram and what would be done, or why it cannot be opened."""
    if one.grid is None:
        click.echo(f"Error: {one.run}: {' '.join(str(one.error).split())}", err=True)
        return
    z, y, x = one.grid.shape_zyx
    task = "would be searched" if one.pending else "would be skipped"
    click.echo(
        f"{one.run}: {z} x {y} x {x} voxels (z, y, x) at {one.grid.voxel_spacing:g} Å, results {one.state}, {task}"
    )


def print_stale(runs: Sequence[str]) -> None:
    """Warn of finished runs whose results were made with other inputs or settings."""
    if runs:
        click.echo(
            f"Warning: made with other inputs or settings and not replaced: {', '.join(runs)}. "
            "Search them again with --overwrite"
        )
