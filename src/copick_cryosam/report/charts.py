"""Histograms and precision-recall curves as inline SVG that takes the page's text colour."""

from __future__ import annotations

import re
from io import StringIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copick_cryosam.report.model import RunReport
from copick_cryosam.types import FloatArray

__all__ = ["candidate_chart", "precision_recall_chart", "score_chart", "size_chart"]

_INK = "#010203"
"""Stands for the page's text colour while drawing; replaced by `currentColor` in the SVG."""
_ACCEPTED, _REJECTED, _BASELINE = "#0072B2", "#999999", "#D55E00"


def score_chart(run: RunReport, prefix: str) -> str | None:
    """Histogram of the picks' scores, with the threshold where it is one of these; None without picks."""
    scores = np.array([one.score for one in run.instances], dtype=np.float64)
    if len(scores) == 0:
        return None
    figure, axes = _figure()
    axes.hist(
        scores, bins=_edges(scores), color=_ACCEPTED, edgecolor=_INK, linewidth=0.5, label=f"picks ({len(scores)})"
    )
    _mark(axes, run.threshold)
    axes.set_xlabel("score")
    axes.set_ylabel("picks")
    return _svg(figure, axes, prefix)


def candidate_chart(run: RunReport, prefix: str) -> str | None:
    """Histogram of how well all proposed points matched, parted at the threshold; None without any.

    Most points are background: the counts are on a logarithmic scale.
    """
    if run.candidates is None or len(run.candidates) == 0:
        return None
    values = np.asarray(run.candidates, dtype=np.float64)
    threshold = -np.inf if run.candidate_threshold is None else run.candidate_threshold
    figure, axes = _figure()
    groups = [
        (values[values < threshold], "left out", _REJECTED, "////"),
        (values[values >= threshold], "segmented", _ACCEPTED, ""),
    ]
    for some, name, color, hatch in groups:
        if len(some):
            axes.hist(
                some,
                bins=_edges(values),
                label=f"{name} ({len(some)})",
                color=color,
                hatch=hatch,
                edgecolor=_INK,
                linewidth=0.5,
                log=True,
            )
    _mark(axes, run.candidate_threshold)
    # room for the legend above the tallest bar
    axes.set_ylim(0.5, axes.get_ylim()[1] ** 1.6)
    axes.set_xlabel("match with the seeds")
    axes.set_ylabel("proposed points")
    return _svg(figure, axes, prefix)


def _mark(axes: Axes, threshold: float | None) -> None:
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(threshold, color=_INK, linestyle="--", label=f"threshold {threshold:.3g}")


def size_chart(run: RunReport, prefix: str) -> str | None:
    """Histogram of the masks' volumes in nm³; None without picks."""
    if not run.instances:
        return None
    sizes = np.array([one.size for one in run.instances]) * (run.grid.voxel_spacing / 10) ** 3
    figure, axes = _figure()
    axes.hist(sizes, bins=_edges(sizes), color=_ACCEPTED, edgecolor=_INK, linewidth=0.5, label=f"picks ({len(sizes)})")
    sphere = 4 / 3 * np.pi * (run.radius_angstrom / 10) ** 3
    axes.axvline(float(sphere), color=_INK, linestyle=":", label="sphere of the object's radius")
    axes.set_xlabel("volume of the mask (nm³)")
    axes.set_ylabel("picks")
    return _svg(figure, axes, prefix)


def precision_recall_chart(run: RunReport, prefix: str) -> str | None:
    """Precision against recall over the scores, with the baseline beside it; None without truth or scores."""
    if run.scores is None or run.scores.scores is None or run.scores.truth == 0 or run.scores.predicted == 0:
        return None
    figure, axes = _figure()
    for scores, name, color, marker in (
        (run.scores, "picks", _ACCEPTED, "o"),
        (run.baseline_scores, "baseline", _BASELINE, "s"),
    ):
        if scores is None:
            continue
        if scores.scores is not None and scores.predicted:
            curve = scores.curve()
            style = "-" if name == "picks" else "--"
            axes.plot(curve.recall, curve.precision, style, color=color, drawstyle="steps-post")
        label = f"{name}: F1 {scores.f1:.2f}"
        axes.plot(
            [scores.recall], [scores.precision], marker, color=color, markeredgecolor=_INK, label=label, clip_on=False
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    return _svg(figure, axes, prefix)


def _edges(values: FloatArray) -> list[float]:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        width = max(abs(low), 1.0) * 0.05
        low, high = low - width, high + width
    count = min(40, max(8, round(2 * len(values) ** 0.5)))
    return [float(edge) for edge in np.linspace(low, high, count + 1)]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, axes: Axes, prefix: str) -> str:
    """The figure as an SVG element; ids start with `prefix`, since several charts share the page."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[:].set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    out = StringIO()
    # Fixed salt and no date: the same data give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "copick-cryosam", "hatch.linewidth": 0.6}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', text, count=1
    )
