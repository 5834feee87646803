"""`copick training sasi`: a detector from a few points of each object."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click_option_group import optgroup
from copick.cli.types import CopickURI
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_tomogram_option

from copick_cryosam.cli.errors import one_line_errors
from copick_cryosam.cli.options import device_option, stated

if TYPE_CHECKING:
    from copick_cryosam.compute.sasi_training import Learned, LearnedFrom
    from copick_cryosam.sasi.settings import SasiSettings


@click.command(
    name="sasi",
    short_help="Train a detector of several objects from a few points of each.",
    context_settings={"show_default": True},
    no_args_is_help=True,
)
@add_config_option
@optgroup.group("\nInput Options", help="What to learn from.")
@add_tomogram_option(required=True)
@optgroup.option(
    "--input",
    "-i",
    "input_uris",
    type=CopickURI("picks", "input"),
    multiple=True,
    required=True,
    help="Picks URI (object:user/session) of points that you vouch for; give it once per object or more often.",
)
@optgroup.option(
    "--pseudo",
    type=CopickURI("picks", "reference"),
    multiple=True,
    help="Picks of copick inference cryosam that are learned from, too, weighted by their expected precision.",
)
@optgroup.option(
    "--min-precision", type=float, default=0.9, metavar="P", help="--pseudo: leave out picks of a lower score."
)
@optgroup.option(
    "--shots", type=int, metavar="N", help="Use N points of each object, drawn by the seed.  [default: all]"
)
@add_run_names_option
@optgroup.group("\nMethod Options", help="How to learn; what is not given comes from --settings, else from --preset.")
@optgroup.option(
    "--preset",
    type=click.Choice(["embedded", "paper"]),
    default="embedded",
    help="Settings that go together: from the package's own encoder, as measured best; or all parts of the SaSi paper "
    "on its net.",
)
@optgroup.option(
    "--settings",
    "settings_path",
    type=click.Path(),
    help="YAML file of settings, such as training: {batch: 16}; a field that it leaves out is the preset's.",
)
@optgroup.option(
    "--architecture",
    type=click.Choice(["deepfinder", "monai-unet", "embednet"]),
    help="The net: DeepFinder's U-Net, MONAI's, or the package's own encoder.  [default: the preset's]",
)
@optgroup.option(
    "--init",
    type=click.Choice(["none", "embednet"]),
    help="Weights to start from: random ones, or those of the package's own encoder.  [default: the preset's]",
)
@optgroup.option(
    "--infill/--no-infill", default=None, help="Mix transformed copies into windows.  [default: the preset's]"
)
@optgroup.option(
    "--consistency/--no-consistency",
    default=None,
    help="Ask for the same answer in a transformed window.  [default: the preset's]",
)
@optgroup.option(
    "--self-supervision",
    type=click.Choice(["none", "iss", "pss"]),
    help="Contrastive steps without labels: none, before the others (iss), or alternating with them (pss).  "
    "[default: the preset's]",
)
@optgroup.option("--steps", type=int, metavar="N", help="At most so many steps.  [default: the preset's]")
@optgroup.option("--seed", type=int, help="Of every random choice.  [default: 0]")
@optgroup.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Numbers to compute with.  [default: auto, bf16 where the device computes with it]",
)
@optgroup.option(
    "--polarity",
    type=click.Choice(["auto", "dark", "light"]),
    help="How particles look in the tomograms.  [default: auto, decided from the points]",
)
@device_option()
@optgroup.group("\nOutput Options", help="Where the model goes.")
@optgroup.option(
    "--output",
    "-o",
    "model_path",
    type=click.Path(),
    required=True,
    help="The model: NAME.safetensors, beside which NAME.json says what it is and what it was trained from.",
)
@optgroup.option(
    "--curve",
    "curve_path",
    type=click.Path(dir_okay=False),
    metavar="FILE.png",
    help="Draw the loss over the steps; FILE may be PNG, SVG or PDF.",
)
@optgroup.option(
    "--resume/--no-resume", default=True, help="Go on from what a killed training of this model left, if anything."
)
@optgroup.option("--overwrite/--no-overwrite", default=False, help="Replace a model that exists.")
@optgroup.option("--dry-run", is_flag=True, help="Show what would be learned from; write nothing.")
@add_debug_option
@one_line_errors
def sasi(
    config: str | None,
    tomogram_uri: str,
    input_uris: tuple[str, ...],
    run_names: tuple[str, ...],
    pseudo: tuple[str, ...],
    min_precision: float,
    preset: str,
    settings_path: str | None,
    model_path: str,
    curve_path: str | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    debug: bool,
    **method: Any,
) -> None:
    """Train a detector of several objects from a few points of each.

    3 to 10 points of each object are enough to begin with. They may lie in any runs; with -r only those of these runs
    are used, and runs given with -r that have no points serve the parts of the method that need none. The detector is
    one file, for every project with tomograms of the same voxel spacing and objects of the same names. A training that
    was killed goes on where it was when the same command is given again.

    \b
    URI Format:
        Picks: object_name:user_id/session_id
        Tomograms: tomo_type@voxel_spacing

    \b
    Examples:
        # Two objects, all points of the curator
        copick training sasi -c config.json -t wbp@10.0 -i ribosome:curator/1 -i proteasome:curator/1 -o detector.safetensors

    \b
        # Five points of each, with a picture of the curve
        copick training sasi -c config.json -t wbp@10.0 -i ribosome:curator/1 -i proteasome:curator/1 --shots 5 --seed 1 -o detector.safetensors --curve curve.png

    \b
        # From one seed to a detector: CryoSAM first, then its confident picks beside the seed
        copick inference cryosam -c config.json -t wbp@10.0 -i ribosome:curator/1
        copick training sasi -c config.json -t wbp@10.0 -i ribosome:curator/1 --pseudo ribosome:cryosam/1 -o detector.safetensors

    \b
    See Also:
        copick inference sasi: finds the objects with the detector
        copick inference cryosam: picks particles from one seed, without training
        copick evaluation localization: scores picks against true picks
    """  # noqa: E501 - a line of an example is pasted whole
    from copick.util.log import get_logger

    from copick_cryosam.cli.progress import TrainingDisplay
    from copick_cryosam.compute.sasi_training import plan_training, run_training
    from copick_cryosam.errors import InputError
    from copick_cryosam.io.sasi_job import TrainingJob

    get_logger(__name__, debug=debug)
    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    settings = _settings(preset, settings_path, **method)
    runs = resolve_run_names(run_names)
    job = TrainingJob.create(
        config=config,
        tomogram=tomogram_uri,
        points=input_uris,
        model=model_path,
        runs=None if runs is None else tuple(runs),
        pseudo=pseudo,
        min_precision=min_precision,
        overwrite=overwrite,
    )
    curve = _curve_file(curve_path)
    if dry_run:
        for one in plan_training(job, settings):
            _print_run(one)
        click.echo(f"Would train {settings.architecture} for at most {settings.training.steps} steps")
        click.echo("Nothing was written.")
        return
    with TrainingDisplay() as display:
        learned = run_training(job, settings, display, resume=resume)
    _print_learned(learned)
    if curve is not None:
        from copick_cryosam.report.training_curve import save_training_curve

        click.echo(f"Curve: {save_training_curve(curve, learned.curve, learned.kept['step'])}")


def _settings(
    preset: str,
    path: str | None,
    shots: int | None,
    architecture: str | None,
    init: str | None,
    infill: bool | None,
    consistency: bool | None,
    self_supervision: str | None,
    steps: int | None,
    seed: int | None,
    precision: str | None,
    polarity: str | None,
    device: str | None,
) -> SasiSettings:
    """The preset, over it the file, over that what was given as an option.

    Of --architecture and --init one implies the other where they would not fit.
    """
    from copick_cryosam.sasi.settings import sasi_preset, sasi_settings

    settings = sasi_preset(preset)
    if path is not None:
        settings = sasi_settings(path, settings)
    if init == "embednet" and architecture is None:
        architecture = "embednet"
    if architecture not in (None, "embednet") and init is None:
        init = "none"
    given: dict[str, Any] = {
        "architecture": architecture,
        "init": init,
        "infill": {"enabled": infill},
        "consistency": {"enabled": consistency},
        "self_supervision": {"mode": self_supervision},
        "training": {"shots": shots, "steps": steps, "seed": seed, "precision": precision},
        "polarity": polarity,
        "device": device,
    }
    return sasi_settings(stated(given), settings)


def _curve_file(path: str | None) -> Path | None:
    from copick_cryosam.cli.messages import report_file
    from copick_cryosam.errors import InputError
    from copick_cryosam.report.training_curve import FORMATS

    curve = report_file(path, "curve")
    if curve is not None and curve.suffix not in FORMATS:
        raise InputError(f"curve {curve}: expected a name that ends in {', '.join(FORMATS)}", hint="Choose another one")
    return curve


def _print_run(one: LearnedFrom) -> None:
    human, pseudo = (_counted(some) for some in (one.human, one.pseudo))
    labels = human or "no points"
    click.echo(f"{one.run}: {labels}" + (f"; pseudo-labels: {pseudo}" if pseudo else ""))


def _counted(some: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in some.items() if count)


def _print_learned(learned: Learned) -> None:
    for one in learned.runs:
        _print_run(one)
    click.echo(f"Particles were taken for {learned.polarity} ones")
    kept, last = learned.kept, learned.curve[-1]["step"]
    looked = kept.get("held_out") is not None
    loss = f", Dice loss {kept['held_out']:.3f} on held-out points" if looked else ""
    click.echo(f"Kept: step {kept['step']} of {last}{', stopped early' if learned.stopped_early else ''}{loss}")
    click.echo(f"Model: {learned.model}")
