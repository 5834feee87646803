"""`copick evaluation localization`: how well picks agree with the truth."""

# The option decorators of copick and click-option-group carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click_option_group import optgroup
from copick.cli.types import CopickURI
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option, resolve_run_names
from copick_utils.cli.util import add_input_option

from copick_cryosam.cli.errors import one_line_errors

if TYPE_CHECKING:
    from copick_cryosam.evaluation import LocalizationScores
    from copick_cryosam.io.picks import ScoredPicks
    from copick_cryosam.types import AngstromPoints


@click.command(
    name="localization",
    short_help="Score picks against true picks, one to one.",
    context_settings={"show_default": True},
)
@add_config_option
@optgroup.group("\nInput Options", help="What is scored, and against what.")
@add_input_option("picks")
@optgroup.option(
    "--truth",
    "truth_uri",
    type=CopickURI("picks", "reference"),
    required=True,
    help="True picks (object:user/session).",
)
@optgroup.option("--seeds", "seeds_uri", type=CopickURI("picks", "reference"), help="Picks that served as seeds.")
@add_run_names_option
@optgroup.group("\nScoring Options", help="How picks are counted.")
@optgroup.option(
    "--tolerance", type=float, metavar="Å", help="Largest distance of a match, in Å.  [default: the object's radius]"
)
@optgroup.option(
    "--exclude-seeds/--include-seeds", default=True, help="Leave seeds out of picks and truth (needs --seeds)."
)
@optgroup.option("--min-score", type=float, help="Score only picks of at least this score.")
@optgroup.group("\nOutput Options", help="Where the figures go besides the terminal.")
@optgroup.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all figures to this JSON file.")
@add_debug_option
@one_line_errors
def localization(
    config: str | None,
    input_uri: str,
    truth_uri: str,
    seeds_uri: str | None,
    run_names: tuple[str, ...],
    tolerance: float | None,
    exclude_seeds: bool,
    min_score: float | None,
    json_path: str | None,
    debug: bool,
) -> None:
    """Score picks against true picks, one to one.

    Every pick is matched to at most one true pick within the tolerance, as many as possible and then as
    close as possible. A second pick on one particle counts as false and is also counted as a duplicate.
    Figures are given for every run, counted over all runs, and as means over runs. Runs that have only
    one of the two sets are left out and named; with -r they are an error.

    \b
    URI Format:
        Picks: object_name:user_id/session_id

    \b
    Examples:
        # Tolerance is the radius of the object
        copick evaluation localization -c config.json -i ribosome:cryosam/1 --truth ribosome:curator/1

    \b
        # Leave the seeds out of both sides
        copick evaluation localization -c config.json -i ribosome:cryosam/1 --truth ribosome:curator/1 --seeds ribosome:seed/1

    \b
        # Half the radius of an object of 150 Å, two runs, figures to a file
        copick evaluation localization -c config.json -i ribosome:cryosam/1 --truth ribosome:curator/1 --tolerance 75 -r TS_001 -r TS_002 --json scores.json

    \b
    See Also:
        copick inference cryosam: picks particles from one seed
    """  # noqa: E501 - a line of an example is pasted whole
    from copick_cryosam.errors import InputError, NotFoundError
    from copick_cryosam.evaluation import mean_scores, pool
    from copick_cryosam.io.job import PicksUri
    from copick_cryosam.io.picks import read_picks
    from copick_cryosam.io.project import open_project

    if config is None:
        raise InputError("config: expected a copick configuration, found none", hint="Give its path with -c")
    predicted_of = PicksUri.parse(input_uri, "--input")
    truth_of = PicksUri.parse(truth_uri, "--truth")
    seeds_of = None if seeds_uri is None else PicksUri.parse(seeds_uri, "--seeds")
    project = open_project(config)
    runs = resolve_run_names(run_names)
    reach = project.object(truth_of.object_name).radius if tolerance is None else tolerance
    truth = read_picks(project, truth_of, runs)
    predicted = read_picks(project, predicted_of, runs)
    seeds = {} if seeds_of is None else read_picks(project, seeds_of, runs)
    both = [run for run in project.select_runs(runs) if run in truth and run in predicted]
    left_out = sorted((truth.keys() | predicted.keys()) - set(both))
    if not both or (runs is not None and len(both) < len(project.select_runs(runs))):
        missing = [run for run in project.select_runs(runs) if run not in both]
        run = missing[0]
        which = f"--input {input_uri}" if run not in predicted else f"--truth {truth_uri}"
        raise NotFoundError(f"run {run}: expected picks {which}, found none", hint="List picks with `copick browse`")

    scores = {
        run: _score(
            predicted[run], truth[run][0], seeds[run][0] if exclude_seeds and run in seeds else None, reach, min_score
        )
        for run in both
    }
    pooled, means = pool(list(scores.values())), mean_scores(list(scores.values()))
    _print_table(scores, pooled)
    click.echo(f"Mean over runs: precision {means.precision:.3f}, recall {means.recall:.3f}, F1 {means.f1:.3f}")
    if left_out:
        click.echo(f"Left out, picks on one side only: {', '.join(left_out)}")
    if json_path is not None:
        _write_json(
            json_path,
            {
                "input": input_uri,
                "truth": truth_uri,
                "seeds": seeds_uri,
                "seeds_excluded": bool(exclude_seeds and seeds),
                "min_score": min_score,
                "runs": {run: one.summary() for run, one in scores.items()},
                "pooled": pooled.summary(),
                "mean_over_runs": {"precision": means.precision, "recall": means.recall, "f1": means.f1},
                "left_out": left_out,
            },
        )


def _score(
    picks: ScoredPicks, truth: AngstromPoints, seeds: AngstromPoints | None, tolerance: float, min_score: float | None
) -> LocalizationScores:
    import numpy as np

    from copick_cryosam.errors import InputError
    from copick_cryosam.evaluation import exclude_seeds, localization
    from copick_cryosam.types import AngstromPoints

    points, values = picks
    keep = np.ones(len(points), dtype=bool)
    if min_score is not None:
        if values is None and len(points):
            raise InputError("--min-score: expected picks with scores, found none", hint="Leave --min-score out")
        keep = np.ones(0, dtype=bool) if values is None else values >= min_score
    points, values = AngstromPoints(points.xyz[keep]), None if values is None else values[keep]
    if seeds is not None:
        keep, keep_truth = exclude_seeds(points, truth, seeds, tolerance)
        points, values = AngstromPoints(points.xyz[keep]), None if values is None else values[keep]
        truth = AngstromPoints(truth.xyz[keep_truth])
    return localization(points, values, truth, tolerance)


def _print_table(scores: dict[str, LocalizationScores], pooled: LocalizationScores) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"One to one within {pooled.tolerance:g} Å")
    table.add_column("run", no_wrap=True)
    for name in ("picks", "truth", "TP", "FP", "FN", "dup", "precision", "recall", "F1", "F4", "AP", "Å"):
        table.add_column(name, justify="right", no_wrap=True)
    for run, one in [*scores.items(), ("All runs", pooled)]:
        counts = (one.predicted, one.truth, one.true_positives, one.false_positives, one.false_negatives)
        ratios = (one.precision, one.recall, one.f1, one.f_beta(4.0), one.average_precision)
        distance = "-" if one.mean_distance is None else f"{one.mean_distance:.1f}"
        cells = [str(count) for count in (*counts, one.duplicates)]
        cells += ["-" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
        table.add_row(escape(run), *cells, distance, style="bold" if one is pooled else None)
    # A table wider than the terminal wraps; cut-off figures would be lost.
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(needed, Console().width)).print(table)


def _write_json(path: str, content: dict[str, object]) -> None:
    import json
    import os
    from pathlib import Path

    from copick_cryosam.errors import OutputError

    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"--json {path}: expected a writable file, found: {error.strerror}", hint="Choose another path"
        ) from None
