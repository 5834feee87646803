"""The scores in the model card, made from those that `validate` measured.

python -m copick_cryosam.pretraining.validate --templates FOLDER --snr 0.1 --json scores.json
python -m copick_cryosam.pretraining.model_card scores.json [MORE.json ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from copick_cryosam.pretraining.marked_part import replace_part
from copick_cryosam.pretraining.validate import KindScore

MARKS = ("<!-- scores: begin -->", "<!-- scores: end -->")
"""Lines of the card between which the scores stand."""

COLUMNS = {
    "f1": "F1",
    "oracle_f1": "F1 at the best threshold",
    "precision": "precision",
    "recall": "recall",
    "baseline_f1": "DoG F1",
    "baseline_oracle_f1": "DoG at its best threshold",
    "dice": "mask Dice",
}
KINDS = {
    "4v94": "4v94, chaperonin, r 17",
    "3cf3": "3cf3, p97, r 7",
    "1qvr": "1qvr, ClpB, r 7",
    "2uv8": "2uv8, fatty acid synthase, r 14",
    "3h84": "3h84, r 5",
    "capped-8": "capped barrel, r 8",
    "capped-11": "capped barrel, r 11",
}


def section(rows: Sequence[KindScore]) -> str:
    """A table for each signal-to-noise ratio, the highest first: mean and standard deviation over data sets."""
    parts = []
    for snr in sorted({row.snr for row in rows}, reverse=True):
        some = [row for row in rows if row.snr == snr]
        lines = [
            f"SNR {snr:g} per tilt image, {sum(row.truth for row in some):.0f} particles:",
            "",
            "| kind | " + " | ".join(COLUMNS.values()) + " |",
            "|" + "---|" * (len(COLUMNS) + 1),
        ]
        for kind in dict.fromkeys(row.kind for row in some):
            lines.append(f"| {KINDS.get(kind, kind)} | {_cells([row for row in some if row.kind == kind])} |")
        lines.append(f"| **mean of all** | {_cells(some)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cells(rows: Sequence[KindScore]) -> str:
    values = [np.array([getattr(row, column) for row in rows], dtype=float) for column in COLUMNS]
    known = [some[np.isfinite(some)] for some in values]
    return " | ".join(f"{some.mean():.2f} ± {some.std():.2f}" if len(some) else "–" for some in known)


def main() -> None:
    """Parse the command line and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, nargs="+", help="files of validate --json")
    card = Path(str(files("copick_cryosam.weights"))) / "MODEL_CARD.md"
    parser.add_argument("--card", type=Path, default=card, help="default: the package's own")
    arguments = parser.parse_args()
    rows = [KindScore(**row) for path in arguments.scores for row in json.loads(path.read_text(encoding="utf-8"))]
    replace_part(arguments.card, MARKS, section(rows))
    print(section(rows))


if __name__ == "__main__":
    main()
