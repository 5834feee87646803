"""Curves as SVG pictures for the README: on white, so that they are legible whatever the page's colour."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copick_cryosam.pretraining.summaries import ENOUGH, Point, Reliability

_OWN, _SECOND, _BASELINE, _GREY = "#0072B2", "#009E73", "#D55E00", "#767676"


def label_figure(points: Sequence[Point]) -> str:
    """F1 over the number of seeds, as SVG."""
    figure, axes = _figure()
    _lines(axes, points, _OWN, "picks, own threshold", "picks, best threshold")
    _baseline(axes, points)
    _abscissa(axes, points, [f"{p.at:g}\nn = {p.count}" for p in points])
    axes.set_xlabel("seeds (n: kinds x data sets)")
    return _finish(figure, axes)


def noise_figure(curves: dict[int, Sequence[Point]]) -> str:
    """F1 over the signal-to-noise ratio for each number of seeds, as SVG; the baseline is that of the first."""
    figure, axes = _figure()
    for (seeds, points), colour in zip(curves.items(), (_OWN, _SECOND), strict=False):
        name = f"{seeds} seed{'s' if seeds > 1 else ''}"
        _lines(axes, points, colour, f"{name}, own threshold", f"{name}, best threshold")
    first = next(iter(curves.values()))
    _baseline(axes, first)
    _abscissa(axes, first, [f"{p.at:g}" for p in first])
    axes.set_xlabel("signal-to-noise ratio of the untilted image")
    return _finish(figure, axes)


def reliability_figure(curves: dict[int, Reliability]) -> str:
    """Fraction of true proposals over their expected precision for each number of seeds, as SVG."""
    figure, axes = _figure()
    axes.fill_between([0, 1], [-0.1, 0.9], [0.1, 1.1], color="#e8e8e8", linewidth=0, label="within 0.1")
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for (seeds, curve), colour, marker in zip(curves.items(), (_OWN, _SECOND), ("o", "s"), strict=False):
        error = np.sqrt(curve.true * (1 - curve.true) / np.maximum(curve.count, 1))
        name = f"{seeds} seed{'s' if seeds > 1 else ''}"
        axes.errorbar(curve.expected, curve.true, error, color=colour, linewidth=1.6, capsize=2, label=name)
        for at, true, enough in zip(curve.expected, curve.true, curve.enough, strict=True):
            axes.plot([at], [true], marker, color=colour, markerfacecolor=colour if enough else "white", zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="fraction that is true")
    axes.set_xlabel(f"expected precision (open: fewer than {ENOUGH} proposals)")
    return _finish(figure, axes, ylabel=None)


def write(path: Path, text: str) -> None:
    """Write a picture or text whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _lines(axes: Axes, points: Sequence[Point], colour: str, own: str, best: str) -> None:
    for name, label, style in (("f1", own, "-o"), ("best", best, "--o")):
        at = np.array([p.at for p in points])
        value = np.array([p.scores[name].value for p in points])
        error = np.nan_to_num([p.scores[name].error for p in points])
        face = colour if name == "f1" else "white"
        axes.plot(at, value, style, color=colour, linewidth=1.8, markersize=5, markerfacecolor=face, label=label)
        axes.fill_between(at, value - error, value + error, color=colour, alpha=0.14, linewidth=0)


def _baseline(axes: Axes, points: Sequence[Point]) -> None:
    at = [p.at for p in points]
    for name, label, style in (
        ("baseline_f1", "difference of Gaussians, own threshold", "-"),
        ("baseline_best", "difference of Gaussians, best threshold", "--"),
    ):
        value = [p.scores[name].value for p in points]
        axes.plot(at, value, style, color=_BASELINE, linewidth=1.4, label=label)


def _abscissa(axes: Axes, points: Sequence[Point], labels: Sequence[str]) -> None:
    axes.set_xscale("log")
    axes.set_xticks([p.at for p in points], labels)
    axes.minorticks_off()


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", facecolor="white")
    return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, ylabel: str | None = "F1, mean ± standard error") -> str:
    axes.spines[["top", "right"]].set_visible(False)
    if ylabel is not None:
        axes.set_ylabel(ylabel)
        axes.set_ylim(0, 1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    out = StringIO()
    # Fixed salt and no date: the same numbers give the same file. Text stays text, in fonts that pages have.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "copick-cryosam"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
