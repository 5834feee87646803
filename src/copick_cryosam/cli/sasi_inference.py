"""`copick inference sasi`: a trained detector in every tomogram."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click_option_group import optgroup
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_output_option, add_tomogram_option

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.messages import print_planned_run, print_stale
from copick_cryosam.cli.options import device_option

if TYPE_CHECKING:
    from copick_cryosam.compute import Summary
    from copick_cryosam.compute.sasi_detecting import DetectionOptions
    from copick_cryosam.config import Device
    from copick_cryosam.io.sasi_job import DetectionJob


@click.command(
    name="sasi",
    short_help="Find the objects of a trained detector.",
    context_settings={"show_default": True},
    no_args_is_help=True,
)
@add_config_option
@optgroup.group("\nInput Options", help="Where to search, and with what.")
@add_tomogram_option(required=True)
@optgroup.option(
    "--model",
    "-m",
    "model_path",
    type=click.Path(),
    required=True,
    help="The detector that copick training sasi wrote.",
)
@add_run_names_option
@optgroup.group("\nMethod Options", help="What is not given is as in the model.")
@optgroup.option(
    "--min-score", type=float, metavar="P", help="Leave out particles of a lower mean probability, 0 to 1."
)
@optgroup.option("--batch", type=int, metavar="N", help="Windows in one call; fewer need less memory.")
@device_option("auto")
@optgroup.group("\nOutput Options", help="Where the results go.")
@optgroup.option(
    "--output",
    "-o",
    "output",
    metavar="USER/SESSION",
    help="User and session of the picks; every object of the model gets a set.  [default: sasi/1]",
)
@add_output_option(
    "segmentation",
    required=False,
    flag="--output-segmentation",
    short_flag="-os",
    param_name="output_segmentation_uri",
    description="Output URI (name:user/session) of a multilabel segmentation.  [default: sasi, user and session as "
    "of the picks]",
)
@optgroup.option("--overwrite/--no-overwrite", default=False, help="Search finished runs again.")
@optgroup.option("--dry-run", is_flag=True, help="Show what would be searched; write nothing.")
@add_debug_option
@one_line_errors
def sasi(
    config: str | None,
    tomogram_uri: str,
    model_path: str,
    run_names: tuple[str, ...],
    min_score: float | None,
    batch: int | None,
    device: Device,
    output: str | None,
    output_segmentation_uri: str | None,
    overwrite: bool,
    dry_run: bool,
    debug: bool,
) -> None:
    """Find the objects of a trained detector.

    Every object of the model gets a set of scored picks, and all of them together one multilabel segmentation, whose
    voxels have the objects' labels in the project. Finished runs are skipped. The exit code is 0 only if every run
    succeeded.

    \b
    URI Format:
        Segmentations: name:user_id/session_id
        Tomograms: tomo_type@voxel_spacing

    \b
    Examples:
        # All runs, into the picks OBJECT:sasi/1 and the segmentation sasi:sasi/1
        copick inference sasi -c config.json -t wbp@10.0 -m detector.safetensors

    \b
        # Two runs, sure particles alone, another session
        copick inference sasi -c config.json -t wbp@10.0 -m detector.safetensors -r TS_001 -r TS_002 --min-score 0.8 -o sasi/2

    \b
    See Also:
        copick training sasi: trains a detector from a few points
        copick inference cryosam: picks particles from one seed, without training
        copick evaluation localization: scores picks against true picks
        copick export picks: picks as STAR, EM, Dynamo or CSV files
    """  # noqa: E501 - a line of an example is pasted whole
    from copick.util.log import get_logger

    from copick_cryosam.cli.progress import Display
    from copick_cryosam.cli.retry import command_line
    from copick_cryosam.compute.sasi_detecting import DetectionOptions, run_detection
    from copick_cryosam.errors import InputError
    from copick_cryosam.io.sasi_job import DetectionJob

    get_logger(__name__, debug=debug)
    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    runs = resolve_run_names(run_names)
    job = DetectionJob.create(
        config=config,
        tomogram=tomogram_uri,
        model=model_path,
        output=output or "",
        output_segmentation=output_segmentation_uri or "",
        runs=None if runs is None else tuple(runs),
        overwrite=overwrite,
    )
    options = DetectionOptions(min_score=min_score, batch=batch, device=device)
    context = click.get_current_context()
    if dry_run:
        context.exit(_print_plan(job, options))
    with Display() as display:
        summary = run_detection(job, options, display)
    _print_summary(summary, job)
    if summary.runs("failed"):
        click.echo(f"Retry the failed ones: {command_line(context, summary.runs('failed'))}")
    context.exit(0 if summary.succeeded else 1)


def _print_plan(job: DetectionJob, options: DetectionOptions) -> int:
    from copick_cryosam.compute.sasi_detecting import plan_detection

    planned = plan_detection(job, options)
    for one in planned:
        print_planned_run(one)
    click.echo(f"Would write picks {job.output} and the multilabel segmentation {job.output_segmentation}")
    click.echo("Nothing was written.")
    return int(any(one.error is not None for one in planned))


def _print_summary(summary: Summary, job: DetectionJob) -> None:
    done, skipped, failed = (summary.runs(state) for state in ("done", "skipped", "failed"))
    print_stale(summary.stale)
    if done or skipped:
        click.echo(f"Results: picks {job.output}, multilabel masks {job.output_segmentation}, in {summary.overlay}")
    click.echo(f"{len(done)} done, {len(skipped)} skipped, {len(failed)} failed")
