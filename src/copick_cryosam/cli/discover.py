"""`copick cryosam discover`: every particle of any kind, without a seed."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click_option_group import optgroup
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_output_option, add_tomogram_option

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.messages import print_planned_run, print_stale, report_file
from copick_cryosam.cli.options import device_option

if TYPE_CHECKING:
    from copick_cryosam.compute.discovering import Discovery, DiscoveryOptions
    from copick_cryosam.config import Settings
    from copick_cryosam.io.discover_job import DiscoverJob


@click.command(
    name="discover",
    short_help="Find particles of every kind without a seed, grouped by what they look like.",
    context_settings={"show_default": True},
    no_args_is_help=True,
)
@add_config_option
@optgroup.group("\nInput Options", help="Where to search.")
@add_tomogram_option(required=True)
@add_run_names_option
@optgroup.group("\nMethod Options", help="What to keep, and how to group it.")
@optgroup.option("--radius", type=float, metavar="Å", help="Keep particles of about this radius, within 35 %.")
@optgroup.option("--min-radius", type=float, metavar="Å", help="Keep particles of at least about this radius.")
@optgroup.option("--max-radius", type=float, metavar="Å", help="Keep particles of at most about this radius.")
@optgroup.option("--clusters", default="auto", metavar="N|auto", help="How many kinds to tell apart.")
@optgroup.option("--max-picks", type=int, metavar="N", help="At most this many picks per tomogram.")
@optgroup.option(
    "--polarity",
    type=click.Choice(["auto", "dark", "light"]),
    default="auto",
    help="How particles look in the tomograms; auto decides from the tomograms, or asks for it.",
)
@device_option("auto")
@optgroup.group("\nOutput Options", help="Where the results go.")
@add_output_option(
    "picks",
    required=True,
    description="Output picks URI (object:user/session); the object must be in the config. {cluster} in the session "
    "stands for 1, 2 ... and rest; without it, -1, -2 ... and -rest are added.  [default: "
    "user and session cryosam/cluster-{cluster}]",
)
@optgroup.option("--overwrite/--no-overwrite", default=False, help="Search finished runs again.")
@optgroup.option("--dry-run", is_flag=True, help="Show what would be searched; write nothing.")
@optgroup.option(
    "--report", "report_path", type=click.Path(dir_okay=False), help="Write an HTML page to name the clusters from."
)
@add_debug_option
@one_line_errors
def discover(
    config: str | None,
    tomogram_uri: str,
    run_names: tuple[str, ...],
    output_uri: str,
    radius: float | None,
    min_radius: float | None,
    max_radius: float | None,
    clusters: str,
    max_picks: int | None,
    polarity: str,
    device: str,
    overwrite: bool,
    dry_run: bool,
    report_path: str | None,
    debug: bool,
) -> None:
    """Find particles of every kind without a seed, grouped by what they look like.

    What the embedded encoder takes for particles is picked, one pick for each, and clustered over all runs. Each
    cluster becomes a set of picks of one object, with a session of its own; the page of --report shows what is in
    each, and the command that searches for it with the cluster as seeds. Objects are not added to the project.
    Finished runs are skipped. The exit code is 0 only if every run succeeded.

    \b
    URI Format:
        Picks: object_name:user_id/session_id
        Tomograms: tomo_type@voxel_spacing

    \b
    Examples:
        # All runs, into sessions cluster-1, cluster-2 ... and cluster-rest, with a page to look at
        copick cryosam discover -c config.json -t wbp@10.0 -o particle --report discovered.html

    \b
        # Two runs, large particles alone, in four clusters
        copick cryosam discover -c config.json -t wbp@10.0 -o particle:cryosam/large-{cluster} -r TS_001 -r TS_002 --min-radius 90 --clusters 4

    \b
        # Then every particle like those of a cluster, with masks
        copick inference cryosam -c config.json -t wbp@10.0 -i particle:cryosam/cluster-1 -o particle:cryosam/like-1

    \b
    See Also:
        copick inference cryosam: picks and segments from seeds
        copick evaluation localization: scores picks against true picks
    """  # noqa: E501 - a line of an example is pasted whole
    from copick.util.log import get_logger

    from copick_cryosam import config as presets
    from copick_cryosam.cli.progress import Display
    from copick_cryosam.cli.retry import command_line
    from copick_cryosam.compute.discovering import DiscoveryOptions, run_discovery
    from copick_cryosam.errors import InputError
    from copick_cryosam.io.discover_job import DiscoverJob

    get_logger(__name__, debug=debug)
    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    settings = presets.override(presets.preset("embedded"), {"polarity": polarity, "device": device})
    options = DiscoveryOptions(
        radius_range=_radius_range(radius, min_radius, max_radius), clusters=_count(clusters), max_picks=max_picks
    )
    chosen = resolve_run_names(run_names)
    job = DiscoverJob.create(
        config=config,
        tomogram=tomogram_uri,
        output=output_uri,
        runs=None if chosen is None else tuple(chosen),
        overwrite=overwrite,
    )
    report = report_file(report_path)
    context = click.get_current_context()
    if dry_run:
        context.exit(_print_plan(job, settings, options))
    with Display() as display:
        found = run_discovery(job, settings, options, display)
    _print_summary(found, job)
    failed = found.summary.runs("failed")
    if failed:
        click.echo(
            f"Clusters go over all runs; search them all again once the failed ones work: {command_line(context)}"
        )
    if report is not None:
        from copick_cryosam.compute.discovery_reporting import write_discovery_report

        click.echo(f"Report: {write_discovery_report(report, job, found, command_line(context))}")
    context.exit(1 if failed else 0)


def _radius_range(radius: float | None, low: float | None, high: float | None) -> tuple[float, float] | None:
    from copick_cryosam.errors import InputError

    if radius is not None and (low is not None or high is not None):
        raise InputError(
            "--radius: expected no --min-radius or --max-radius beside it, found both", hint="Give one or the other"
        )
    if radius is not None:
        return radius / 1.35, radius * 1.35
    if low is None and high is None:
        return None
    return (1.0 if low is None else low), (1000.0 if high is None else high)


def _count(clusters: str) -> int | None:
    from copick_cryosam.errors import InputError

    if clusters == "auto":
        return None
    if not clusters.isdecimal():
        raise InputError(f"--clusters: expected a number or auto, found {clusters!r}", hint="Try --clusters auto")
    return int(clusters)


def _print_plan(job: DiscoverJob, settings: Settings, options: DiscoveryOptions) -> int:
    from copick_cryosam.compute.discovering import plan_discovery

    planned = plan_discovery(job, settings, options)
    for one in planned:
        print_planned_run(one)
    click.echo(f"Would write picks {job.set_of('1')}, {job.set_of('2')} ... and {job.set_of('rest')}")
    click.echo("Nothing was written.")
    return int(any(one.error is not None for one in planned))


def _print_summary(found: Discovery, job: DiscoverJob) -> None:
    summary = found.summary
    print_stale(summary.stale)
    for one in summary.outcomes:
        if one.state == "done":
            click.echo(f"{one.run}: {one.picks} picks")
    if found.runs:
        click.echo(f"Particles were taken for {summary.polarity} ones")
        for cluster, count in found.clusters.items():
            click.echo(f"  {job.set_of(cluster)}: {count} picks")
    if found.runs or summary.runs("skipped"):
        click.echo(f"Results: picks {job.set_of('{cluster}')}, in {summary.overlay}")
    done, skipped, failed = (summary.runs(state) for state in ("done", "skipped", "failed"))
    click.echo(f"{len(done)} done, {len(skipped)} skipped, {len(failed)} failed")
