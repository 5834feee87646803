"""`copick inference cryosam`: from one labelled particle to all of them."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click_option_group import optgroup
from copick.cli.types import CopickURI
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_input_option, add_output_option, add_tomogram_option

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.messages import print_planned_run, print_stale, report_file
from copick_cryosam.cli.options import device_option, stated

if TYPE_CHECKING:
    from copick_cryosam.compute import Plan, Summary
    from copick_cryosam.compute.outcomes import AverageOutcome
    from copick_cryosam.config import Settings
    from copick_cryosam.io.job import Job


class _PresetChoice(click.Choice[str]):
    """The presets for users; `fake`, which needs no weights and finds blobs only, is accepted for tests."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "fake" if value == "fake" else super().convert(value, param, ctx)


@click.command(
    name="cryosam",
    short_help="Pick and segment every particle like the labelled ones.",
    context_settings={"show_default": True},
    no_args_is_help=True,
)
@add_config_option
@optgroup.group("\nInput Options", help="Where to search, and for what.")
@add_tomogram_option(required=True)
@add_input_option("picks")
@optgroup.option(
    "--seed-runs", multiple=True, help="Runs whose seeds are used; give it once per run.  [default: all with seeds]"
)
@optgroup.option("--negatives", type=CopickURI("picks", "reference"), help="Picks of what is not wanted.")
@optgroup.option(
    "--roi", type=CopickURI("segmentation", "reference"), help="Segmentation outside of which nothing is picked."
)
@add_run_names_option
@optgroup.group("\nMethod Options", help="How to pick; what is not given comes from --settings, else from --preset.")
@optgroup.option(
    "--preset",
    type=_PresetChoice(["embedded", "foundation", "paper"]),
    default="embedded",
    help="Models and settings that go together: the package's own; SAM and DINOv2; the same as in the CryoSAM paper. "
    "`copick cryosam models` says what to download for each.",
)
@optgroup.option(
    "--settings",
    "settings_path",
    type=click.Path(),
    help="YAML file of settings, such as segmenter: {longest_side: 512}; a field that it leaves out is the preset's.",
)
@optgroup.option(
    "--sam-checkpoint",
    type=click.Path(),
    help="File of a SAM checkpoint, for every model that is SAM.  [default: the preset's type of SAM, or the largest, "
    "in the folders of CRYOSAM_CHECKPOINTS]",
)
@optgroup.option(
    "--encoder",
    metavar="NAME|PATH",
    help="Encoder: embednet, sam (of --sam-checkpoint), or a vision transformer by name or folder.  "
    "[default: the preset's]",
)
@optgroup.option(
    "--matching", type=click.Choice(["exhaustive", "hierarchical"]), help="Matching strategy.  [default: the preset's]"
)
@optgroup.option(
    "--second-look/--no-second-look",
    default=None,
    help="Turn candidates against the seeds and rank them anew; gives orientations.  "
    "[default: with the embedded models]",
)
@optgroup.option("--max-picks", type=int, metavar="N", help="At most this many picks per tomogram.")
@optgroup.option(
    "--min-precision",
    type=float,
    metavar="P",
    help="Keep picks of at least this expected precision, 0 to 1.  [default: the best expected F1]",
)
@optgroup.option(
    "--polarity",
    type=click.Choice(["auto", "dark", "light"]),
    help="How particles look in the tomogram.  [default: auto, decided from the seeds]",
)
@device_option()
@optgroup.group("\nOutput Options", help="Where the results go.")
@add_output_option(
    "picks",
    required=False,
    description="Output picks URI (object:user/session).  [default: the seeds' object:cryosam/1]",
)
@add_output_option(
    "segmentation",
    required=False,
    flag="--output-segmentation",
    short_flag="-os",
    param_name="output_segmentation_uri",
    description="Output URI (name:user/session@spacing) of an instance and a binary segmentation.  "
    "[default: as the picks]",
)
@optgroup.option("--points-only", is_flag=True, help="Write picks without segmentations.")
@optgroup.option("--overwrite/--no-overwrite", default=False, help="Search finished runs again.")
@optgroup.option(
    "--keep-embeddings",
    is_flag=True,
    help="Keep the embeddings that are computed in the project, for the next object (embedded preset).",
)
@optgroup.option(
    "--reuse-embeddings/--no-reuse-embeddings", default=True, help="Use embeddings of the project where they match."
)
@optgroup.option(
    "--output-average",
    type=click.Path(dir_okay=False),
    metavar="FILE.mrc",
    help="Write the average of the surest picks of this call, its half maps and their FSC.",
)
@optgroup.option("--dry-run", is_flag=True, help="Show runs, memory and time; write nothing.")
@optgroup.option(
    "--report", "report_path", type=click.Path(dir_okay=False), help="Write an HTML report on this call's runs."
)
@add_debug_option
@one_line_errors
def cryosam(
    config: str | None,
    tomogram_uri: str,
    input_uri: str,
    seed_runs: tuple[str, ...],
    negatives: str | None,
    roi: str | None,
    run_names: tuple[str, ...],
    output_uri: str | None,
    output_segmentation_uri: str | None,
    points_only: bool,
    overwrite: bool,
    keep_embeddings: bool,
    reuse_embeddings: bool,
    output_average: str | None,
    dry_run: bool,
    report_path: str | None,
    debug: bool,
    **method: Any,
) -> None:
    """Pick and segment every particle like the labelled ones.

    The labelled particles (seeds) are segmented, and what they look like is searched for in every tomogram.
    One seed is enough; seeds may come from any runs. Written are picks with scores and instance ids, an
    instance segmentation and a binary one. Finished runs are skipped. The exit code is 0 only if every
    run succeeded.

    \b
    URI Format:
        Picks: object_name:user_id/session_id
        Segmentations: name:user_id/session_id@voxel_spacing
        Tomograms: tomo_type@voxel_spacing

    \b
    Examples:
        # Search all runs with the seeds of whichever runs have some
        copick inference cryosam -c config.json -t wbp@10.0 -i ribosome:curator/1

    \b
        # See first what would be done
        copick inference cryosam -c config.json -t wbp@10.0 -i ribosome:curator/1 --dry-run

    \b
        # Two runs, picks of at least 80 % expected precision, names of the outputs, a report
        copick inference cryosam -c config.json -t wbp@10.0 -i ribosome:curator/1 -r TS_001 -r TS_002 --min-precision 0.8 -o ribosome:cryosam/2 -os ribosome:cryosam/2@10.0 --report report.html

    \b
        # SAM and DINOv2 instead of the embedded models, on a GPU
        copick inference cryosam -c config.json -t wbp@10.0 -i ribosome:curator/1 --preset foundation --sam-checkpoint sam_vit_h_4b8939.pth

    \b
    See Also:
        copick process cryosam-embed: makes the embeddings ahead, so that every object is quick to find
        copick evaluation localization: scores picks against true picks
        copick cryosam info: versions, devices and models
        copick cryosam models: checkpoints, their licences and where to get them
        copick export picks: picks as STAR, EM, Dynamo or CSV files
    """  # noqa: E501 - a line of an example is pasted whole
    from copick.util.log import get_logger

    from copick_cryosam.cli.retry import command_line
    from copick_cryosam.compute import plan, run_job
    from copick_cryosam.compute.models import named_models
    from copick_cryosam.errors import InputError
    from copick_cryosam.io.job import Job

    get_logger(__name__, debug=debug)
    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    settings = _settings(**method)
    job = Job.create(
        config=config,
        tomogram=tomogram_uri,
        seeds=input_uri,
        output=output_uri or "",
        output_segmentation=output_segmentation_uri or "",
        points_only=points_only,
        runs=_names(run_names),
        seed_runs=_names(seed_runs),
        negatives=negatives,
        roi=roi,
        overwrite=overwrite,
        keep_embeddings=keep_embeddings,
        reuse_embeddings=reuse_embeddings,
        output_average=output_average,
    )
    context = click.get_current_context()
    report = report_file(report_path)
    # A missing checkpoint is told before anything is read, downloaded or removed.
    named_models(settings)
    if dry_run:
        planned = plan(job, settings)
        _print_plan(planned)
        context.exit(0 if all(one.error is None for one in planned.runs) else 1)

    from copick_cryosam.cli.progress import Display

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display())
        if report is None:
            summary = run_job(job, settings, display)
        else:
            from copick_cryosam.compute.reporting import ReportCollector

            collector = ReportCollector(display)
            summary = run_job(job, settings, collector)
    _print_summary(summary, job)
    if summary.runs("failed"):
        click.echo(f"Retry the failed ones: {command_line(context, summary.runs('failed'))}")
    if report is not None:
        written = collector.write(report, job, summary, command_line(context))
        click.echo(f"Report: {written}")
    context.exit(0 if summary.succeeded else 1)


def _names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    chosen = resolve_run_names(names)
    return None if chosen is None else tuple(chosen)


def _settings(
    preset: str,
    settings_path: str | None,
    sam_checkpoint: str | None,
    encoder: str | None,
    matching: str | None,
    second_look: bool | None,
    max_picks: int | None,
    min_precision: float | None,
    polarity: str | None,
    device: str | None,
) -> Settings:
    """The preset, over it the file, over that what was given as an option."""
    from copick_cryosam import config

    settings = config.preset(preset)
    if settings_path is not None:
        settings = config.load_settings(settings_path, settings)
    given: dict[str, Any] = {
        "encoder": {"name": encoder},
        "matching": {"strategy": matching},
        "alignment": {"second_look": second_look},
        "instances": {"max_picks": max_picks, "min_precision": min_precision},
        "polarity": polarity,
        "device": device,
    }
    settings = config.override(settings, stated(given))
    return settings if sam_checkpoint is None else _with_checkpoint(settings, sam_checkpoint)


def _with_checkpoint(settings: Settings, path: str) -> Settings:
    """The checkpoint for every model that is SAM; absolute, so that the record of a result says where it was."""
    from copick_cryosam.config import override
    from copick_cryosam.errors import InputError

    names = {"segmenter": settings.segmenter.name, "encoder": settings.encoder.name}
    users = [role for role, name in names.items() if name == "sam"]
    if not users:
        raise InputError(
            f"--sam-checkpoint: expected a segmenter or an encoder that is sam, found {' and '.join(names.values())}",
            hint="Leave --sam-checkpoint out, and choose SAM 2 with segmenter: {name: sam2, checkpoint: NAME} in the "
            "--settings file"
            if names["segmenter"] == "sam2"
            else "Add --preset foundation or --preset paper, or leave --sam-checkpoint out",
        )
    checkpoint = str(Path(path).expanduser().absolute())
    return override(settings, {role: {"checkpoint": checkpoint} for role in users})


def _print_plan(plan: Plan) -> None:
    for one in plan.runs:
        print_planned_run(one)
    seeds = ", ".join(f"{count} in {run}" for run, count in plan.seeds.items())
    click.echo(f"Seeds: {seeds}")
    models = "; ".join(f"{role} {model}" for role, model in plan.models.items())
    click.echo(f"Models: {models}; on {plan.device}")
    searched = f"Would search {len(plan.pending)} of {len(plan.runs)} runs"
    if plan.memory is None or plan.seconds is None:
        click.echo(f"{searched}; no estimate of memory and time for an encoder that is not in the catalogue")
    else:
        click.echo(
            f"{searched} with about {plan.memory / 2**30:.1f} GiB of memory; one CPU core would take at most about "
            f"{_duration(plan.seconds)}"
        )
    click.echo("Nothing was written.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.{1 if seconds < 36000 else 0}f} h"


def _average_line(average: AverageOutcome) -> str:
    if average.error is not None:
        return f"Error: {' '.join(str(average.error).split())}"
    halves = f"halves agree to {average.resolution:.0f} Å (FSC 0.143, biased by the common template)"
    return f"Average: {average.path}, {average.particles} particles, " + (
        halves if math.isfinite(average.resolution) else "too few for a resolution"
    )


def _print_summary(summary: Summary, job: Job) -> None:
    done, skipped, failed = (summary.runs(state) for state in ("done", "skipped", "failed"))
    for run, error in summary.seed_failures.items():
        click.echo(f"Error: seeds of {run} were not used: {' '.join(str(error).split())}", err=True)
    for remark in summary.seed_remarks:
        click.echo(f"Warning: {remark}")
    print_stale(summary.stale)
    if summary.average is not None:
        click.echo(_average_line(summary.average), err=summary.average.error is not None)
    if done or skipped:
        masks = "" if job.output_segmentation is None else f", instance and binary masks {job.output_segmentation}"
        click.echo(f"Results: picks {job.output}{masks}, in {summary.overlay}")
    click.echo(f"{len(done)} done, {len(skipped)} skipped, {len(failed)} failed")
