"""How a training went, as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from copick_cryosam.errors import OutputError

__all__ = ["FORMATS", "LOSSES", "save_training_curve"]

FORMATS = (".png", ".svg", ".pdf")
LOSSES = {
    "supervised": ("training points", "#0072B2", "-"),
    "consistency": ("consistency", "#009E73", "-"),
    "contrastive": ("self-supervision", "#767676", "-"),
    "held_out": ("held-out points (right)", "#D55E00", "o--"),
}
"""What is drawn: the entry's name, and the label, colour and style of its line.

The Dice loss of held-out points lies between 0 and 1 and has an axis of its own.
"""


def save_training_curve(path: Path, curve: Sequence[Mapping[str, Any]], kept: int | None = None) -> Path:
    """Draw the losses of training and of held-out points over the steps; whole or not at all.

    Parameters
    ----------
    path : its ending says the format, one of `FORMATS`
    curve : entries with ``step`` and those of `LOSSES` that were measured, None for what was not
    kept : the step whose weights were kept

    Returns
    -------
    `path`.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    right = axes.twinx()
    for name, (label, color, style) in LOSSES.items():
        seen = [(row["step"], row[name]) for row in curve if row.get(name) is not None]
        if seen:
            on = right if name == "held_out" else axes
            on.plot(*zip(*seen, strict=True), style, color=color, label=label, markersize=4, linewidth=1.4)
    if kept is not None:
        axes.axvline(kept, color="#333333", linestyle="--", linewidth=1, label=f"kept: step {kept}")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.set(ylabel="Dice loss, held-out points", ylim=(0, 1))
    right.set_visible(bool(right.lines))
    for each in (axes, right):
        each.spines[["top", "right"]].set_visible(False)
    right.spines["right"].set_visible(True)
    handles, labels = (
        [*mine, *others]
        for mine, others in zip(axes.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
    )
    if handles:
        # on top of both axes, over the line of the step that is kept, which is mostly the last
        legend = (right if right.lines else axes).legend(handles, labels, fontsize=9, loc="upper right")
        legend.get_frame().set(facecolor="white", edgecolor="none", alpha=1)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Fixed salt and no date: the same curve gives the same file.
        with mpl.rc_context({"svg.hashsalt": "copick-cryosam"}):
            metadata = (
                {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
            )
            figure.savefig(part, format=path.suffix[1:], dpi=160, metadata=metadata)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"curve {path}: expected a place that can be written, found: {error.strerror}", hint="Choose another path"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path
