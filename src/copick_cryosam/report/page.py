"""The report as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.evaluation import LocalizationScores, pool
from copick_cryosam.report.charts import candidate_chart, precision_recall_chart, score_chart, size_chart
from copick_cryosam.report.gallery import gallery, seed_images
from copick_cryosam.report.model import Report, RunReport
from copick_cryosam.report.planes import planes

__all__ = ["render_report", "write_page", "write_report"]


def render_report(report: Report) -> str:
    """The report as HTML text.

    Volumes are read one run after the other, a few planes and crops at a time.

    Raises
    ------
    InputError
        A run's volume has another shape than its grid.
    """
    environment = Environment(
        loader=PackageLoader("copick_cryosam", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scored = [run for run in report.runs if run.scores is not None]
    return environment.get_template("report.html.j2").render(
        report=report,
        rows=[_row(run.run_name, len(run.instances), run.scores, run.baseline_scores) for run in report.runs],
        total=_total(report.runs) if len(report.runs) > 1 else None,
        has_truth=bool(scored),
        has_baseline=any(run.baseline_scores is not None for run in report.runs),
        runs=[_run(run, number) for number, run in enumerate(report.runs)],
        parameters=_flatten(report.parameters),
        versions=_flatten(report.versions),
    )


def write_report(report: Report, path: str | Path) -> Path:
    """Write the report to `path`, whole or not at all.

    Raises
    ------
    InputError
        As `render_report`.
    OutputError
        The file cannot be written.
    """
    return write_page(render_report(report), Path(path))


def write_page(text: str, path: Path) -> Path:
    """Write a page to `path`, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"report {path}: expected a writable file, found: {error.strerror}", hint="Choose another path"
        ) from None
    return path


def _run(run: RunReport, number: int) -> dict[str, Any]:
    volume = run.load()
    if tuple(volume.shape) != run.grid.shape_zyx:
        raise InputError(
            f"volume of run {run.run_name}: expected shape {run.grid.shape_zyx}, found {tuple(volume.shape)}",
            hint="Give the grid of this volume",
        )
    charts = [
        ("Candidates", "Histogram of the match of all proposed points.", candidate_chart(run, f"c{number}")),
        ("Scores", "Histogram of the picks' scores.", score_chart(run, f"s{number}")),
        ("Sizes", "Histogram of the volumes of the masks.", size_chart(run, f"v{number}")),
        (
            "Precision and recall",
            "Precision against recall over the scores.",
            precision_recall_chart(run, f"p{number}"),
        ),
    ]
    red, green, blue = run.color[:3]
    return {
        "number": number,
        "name": run.run_name,
        "grid": run.grid,
        "radius": run.radius_angstrom,
        "color": f"rgb({red} {green} {blue})",
        # A rim of the opposite lightness keeps any colour visible on a grey slice.
        "rim": "#000" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "#fff",
        "picks": len(run.instances),
        "threshold": run.threshold,
        "notes": run.notes,
        "seeds": [tuple(point) for point in run.seeds.zyx],
        "seed_images": seed_images(run, volume),
        "diagnosis": run.diagnosis,
        "seeds_angstrom": [tuple(point) for point in run.grid.to_angstrom(run.seeds).xyz],
        "truth": None if run.truth is None else len(run.truth),
        "panels": planes(run, volume),
        "gallery": gallery(run, volume),
        # Safe to embed: the charts hold numbers and fixed words, no text from the user.
        "charts": [(title, text, Markup(svg)) for title, text, svg in charts if svg is not None],
    }


def _row(
    name: str, picks: int, scores: LocalizationScores | None, baseline: LocalizationScores | None
) -> dict[str, Any]:
    figures = {} if scores is None else scores.summary()
    return {"name": name, "picks": picks, "baseline_f1": None if baseline is None else baseline.f1, **_NONE, **figures}


_NONE: dict[str, None] = dict.fromkeys(
    ("truth", "precision", "recall", "f1", "duplicates", "mean_distance", "average_precision")
)


def _total(runs: Sequence[RunReport]) -> dict[str, Any]:
    """All runs counted together; scores only where every run has them, so that a total never hides a run."""
    scores = [run.scores for run in runs if run.scores is not None]
    baselines = [run.baseline_scores for run in runs if run.baseline_scores is not None]
    return _row(
        "All runs",
        sum(len(run.instances) for run in runs),
        pool(scores) if len(scores) == len(runs) else None,
        pool(baselines) if len(baselines) == len(runs) else None,
    )


def _flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{name}.")
        else:
            rows.append((name, str(value)))
    return rows
