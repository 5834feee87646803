"""`copick process cryosam-embed`: embeddings into the project, for every later call that picks."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click_option_group import optgroup
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_input_option, add_tomogram_option

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.options import device_option

if TYPE_CHECKING:
    from copick_cryosam.compute.embedding import PlannedEmbedding


@click.command(
    name="cryosam-embed",
    short_help="Embed tomograms once: every object is found faster.",
    context_settings={"show_default": True},
    no_args_is_help=True,
)
@add_config_option
@optgroup.group("\nInput Options", help="Which tomograms, and how particles look in them.")
@add_tomogram_option(required=True)
@optgroup.option(
    "--polarity",
    type=click.Choice(["auto", "dark", "light"]),
    default="auto",
    help="How particles look in the tomograms; auto decides it from the picks of -i.",
)
@add_input_option("picks", required=False)
@add_run_names_option
@optgroup.group("\nMethod Options", help="With what to embed.")
@optgroup.option(
    "--preset", type=click.Choice(["embedded", "foundation", "paper", "fake"]), default="embedded", hidden=True
)
@optgroup.option(
    "--encoder", metavar="NAME", help="Encoder with features on one grid: embednet.  [default: the preset's]"
)
@device_option("auto")
@optgroup.group("\nOutput Options", help="What is stored.")
@optgroup.option("--overwrite/--no-overwrite", default=False, help="Embed again what is stored already.")
@optgroup.option("--dry-run", is_flag=True, help="Show the runs; write nothing.")
@add_debug_option
@one_line_errors
def cryosam_embed(
    config: str | None,
    tomogram_uri: str,
    run_names: tuple[str, ...],
    polarity: str,
    input_uri: str | None,
    preset: str,
    encoder: str | None,
    device: str,
    overwrite: bool,
    dry_run: bool,
    debug: bool,
) -> None:
    """Embed tomograms once: every object is found faster.

    The embeddings of each tomogram go into the project as copick features (9 bytes per voxel of 10 Å), and
    `copick inference cryosam` reads them instead of encoding again, as long as they fit: same encoder weights,
    same voxels, same polarity. Embeddings that fit are left as they are, others of cryosam are replaced. The exit code
    is 0 only if every run succeeded.

    \b
    URI Format:
        Tomograms: tomo_type@voxel_spacing
        Picks: object_name:user_id/session_id

    \b
    Examples:
        # All runs, polarity as picks of any object show it
        copick process cryosam-embed -c config.json -t wbp@10.0 -i ribosome:curator/1

    \b
        # Two runs whose particles are known to be dark
        copick process cryosam-embed -c config.json -t wbp@10.0 -r TS_001 -r TS_002 --polarity dark

    \b
    See Also:
        copick inference cryosam: picks particles from one seed; --keep-embeddings stores what it computes
    """
    from copick.util.log import get_logger

    from copick_cryosam.cli.progress import EmbeddingDisplay
    from copick_cryosam.cli.retry import command_line
    from copick_cryosam.compute.embedding import EmbedJob, embed_job, plan_embedding
    from copick_cryosam.config import override
    from copick_cryosam.config import preset as settings_of
    from copick_cryosam.errors import InputError
    from copick_cryosam.io.job import PicksUri, TomogramUri

    get_logger(__name__, debug=debug)
    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    settings = settings_of(preset)
    given = {"name": encoder or settings.encoder.name}
    settings = override(settings, {"encoder": given, "polarity": polarity, "device": device})
    runs = resolve_run_names(run_names)
    job = EmbedJob(
        config=config,
        tomogram=TomogramUri.parse(tomogram_uri, "tomogram URI"),
        seeds=None if input_uri is None else PicksUri.parse(input_uri, "input URI"),
        runs=None if runs is None else tuple(runs),
        overwrite=overwrite,
    )
    context = click.get_current_context()
    if dry_run:
        planned = plan_embedding(job, settings)
        _print_plan(planned)
        context.exit(0 if all(one.error is None for one in planned) else 1)
    with EmbeddingDisplay() as display:
        summary = embed_job(job, settings, display)
    for run, error in summary.seed_failures.items():
        click.echo(f"Error: picks of {run} were not used: {' '.join(str(error).split())}", err=True)
    done, skipped, failed = (summary.runs(state) for state in ("done", "skipped", "failed"))
    click.echo(f"Embeddings: features cryosam-{settings.encoder.name} of {job.tomogram}, in {summary.overlay}")
    click.echo(f"{len(done)} done, {len(skipped)} skipped, {len(failed)} failed")
    if failed:
        click.echo(f"Retry the failed ones: {command_line(context, failed)}")
    context.exit(0 if summary.succeeded else 1)


def _print_plan(planned: list[PlannedEmbedding]) -> None:
    for one in planned:
        if one.grid is None:
            click.echo(f"Error: {one.run}: {' '.join(str(one.error).split())}", err=True)
            continue
        z, y, x = one.grid.shape_zyx
        stored = "embeddings are there, would be checked" if one.stored else "would be embedded"
        click.echo(f"{one.run}: {z} x {y} x {x} voxels (z, y, x) at {one.grid.voxel_spacing:g} Å, {stored}")
    click.echo("Nothing was written.")
