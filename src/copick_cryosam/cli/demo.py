"""`copick cryosam demo`: the method on tomograms of its own making."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from copick_cryosam.cli.errors import one_line_errors

if TYPE_CHECKING:
    from copick_cryosam.demo import ObjectScore

__all__ = ["demo"]


@click.command(
    name="demo",
    short_help="Make a small simulated project, pick in it and score the picks.",
    context_settings={"show_default": True},
)
@click.option("--folder", type=click.Path(file_okay=False), default="demo", help="Where the project goes.")
@click.option("--preset", default="embedded", help="Models and settings that go together.")
@click.option("--both", is_flag=True, help="Pick the second kind of particle, too.")
@click.option("--overwrite", is_flag=True, help="Simulate again, and lose everything in the demo's project.")
@one_line_errors
def demo(folder: str, preset: str, both: bool, overwrite: bool) -> None:
    """Make a small simulated project, pick in it from one seed and score the picks.

    Three tomograms with membranes, noise and a missing wedge hold two kinds of invented complexes. One chaperone
    of the first tomogram is labelled; all others are picked from it. Called again, the project is kept and picked
    anew. Only a folder that is new, empty or a demo's own is touched.

    \b
    Examples:
        # The project in ./demo, the result in ./demo/report.html
        copick cryosam demo

    \b
        # Both kinds of particles, somewhere else
        copick cryosam demo --folder /tmp/demo --both

    \b
        # Then do it by hand
        copick inference cryosam -c demo/config.json -t wbp@10.0 -i enzyme:curator/1

    \b
    See Also:
        copick inference cryosam: picks particles from one seed
        copick evaluation localization: scores picks against true picks
    """
    import time
    from pathlib import Path

    from copick_cryosam import config as presets
    from copick_cryosam.cli.progress import Display
    from copick_cryosam.demo import FULL, OBJECTS, pick_and_score, prepare

    began = time.perf_counter()
    settings = presets.preset(preset)

    def simulated(done: int, total: int) -> None:
        click.echo(f"Simulating tomogram {done + 1} of {total}" if done < total else f"Simulated {total} tomograms")

    config = prepare(Path(folder), FULL, anew=overwrite, progress=simulated)
    for each in OBJECTS if both else OBJECTS[:1]:
        click.echo(f"Picking {each.name} from one seed in {FULL.runs[0]}")
        with Display() as display:
            summary, score = pick_and_score(config, each.name, settings, display)
        if score is None:
            failed = ", ".join(summary.runs("failed")) or ", ".join(summary.seed_failures)
            raise click.ClickException(f"demo: expected every run to succeed, found failures in {failed}")
        _print_scores(score)
        click.echo(f"Report: {score.report}")
    click.echo(f"Project: {config}, done in {time.perf_counter() - began:.0f} s")


def _print_scores(score: ObjectScore) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{score.object_name}: picks within one radius ({score.picks.tolerance:g} Å) of the truth, seed left out",
        caption="DoG: difference of Gaussians of the object's radius, which knows no seed",
    )
    table.add_column("run", no_wrap=True)
    for name in ("truth", "picks", "precision", "recall", "F1", "AP", "DoG F1", "DoG AP"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, picks, blobs in [
        *((one.run, one.picks, one.blobs) for one in score.runs),
        ("All runs", score.picks, score.blobs),
    ]:
        ratios = (picks.precision, picks.recall, picks.f1, picks.average_precision, blobs.f1, blobs.average_precision)
        cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        table.add_row(
            name, str(picks.truth), str(picks.predicted), *cells, style="bold" if name == "All runs" else None
        )
    # A table wider than the terminal wraps; cut-off figures would be lost.
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(needed, Console().width)).print(table)
