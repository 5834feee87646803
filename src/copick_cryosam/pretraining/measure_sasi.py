"""Measure what each part of SaSi brings, from 3, 5 and 10 points of each class, beside CryoSAM from the same points.

    python -m copick_cryosam.pretraining.measure_sasi --templates FOLDER --out FOLDER \\
        [--shots 10 3 5] [--seeds 0 1 2] [--steps 300] [--threads 2] [--tuning] [--readme README.md]

Each seed is a data set of its own: four kinds that the embedded nets never saw (`--tuning`: kinds to choose settings
on), SNR 0.1, two tomograms with points, two to search; all variants of a seed get the same points. F1 is one-to-one,
tolerance one radius, mean over the kinds. Every cell is kept in the folder, so that a run that was stopped goes on;
the table is of all cells that are there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from copick_cryosam.errors import InputError
from copick_cryosam.pretraining.marked_part import around, replace_part
from copick_cryosam.pretraining.sasi_trial import VARIANTS, DataSet, draw_data_set, run_variant
from copick_cryosam.sasi.settings import SasiSettings, sasi_settings

SHOTS = (10, 3, 5)
MOST = 10
"""Clicks that are drawn of each kind; fewer shots are the first of these."""
MARKS = ("<!-- sasi: begin -->", "<!-- sasi: end -->")
"""Between these lines a README holds what `--readme` writes."""

AGAINST = {
    "+ infill": "supervised only",
    "+ consistency": "supervised only",
    "+ self-supervision": "supervised only",
    "all": "supervised only",
    "supervised only, from EmbedNet": "supervised only",
    "all, from EmbedNet": "supervised only, from EmbedNet",
    "ladder": "supervised only, from EmbedNet",
    "CryoSAM": "supervised only, from EmbedNet",
}
"""What each variant is compared with."""

_KINDS = {True: "to choose settings on", False: "that were held out"}

Cell = tuple[str, int, int]
"""Variant, shots, seed."""


def cells(shots: Sequence[int], seeds: Sequence[int], variants: Sequence[str]) -> list[Cell]:
    """All cells in the order they are measured: whole tables of fewer seeds come first."""
    return [(variant, count, seed) for count in shots for seed in seeds for variant in variants]


def cell_path(folder: Path, cell: Cell) -> Path:
    """Where a cell is kept."""
    variant, shots, seed = cell
    name = "".join(character if character.isalnum() else "-" for character in variant).strip("-").lower()
    return folder / f"{name}-{shots}-{seed}.json"


def measure(
    folder: Path,
    wanted: Sequence[Cell],
    templates: Path | None,
    base: SasiSettings,
    *,
    tuning: bool = False,
    processes: int = 1,
) -> None:
    """Measure the cells that are not there yet, each in one process of one thread.

    Raises
    ------
    InputError
        A cell was measured on other kinds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for cell, one in read(folder).items():
        if one["tuning"] != tuning:
            raise InputError(
                f"{cell_path(folder, cell)}: expected kinds {_KINDS[tuning]}, found {_KINDS[one['tuning']]}",
                hint="Give another folder with --out",
            )
    left = [(folder, cell, templates, base.model_dump(mode="json"), tuning) for cell in wanted]
    left = [job for job in left if not cell_path(folder, job[1]).exists()]
    if processes == 1:
        for job in left:
            _work(job)
        return
    # forked children would inherit the state of torch's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        list(executor.map(_work, left))


def read(folder: Path) -> dict[Cell, dict[str, Any]]:
    """All cells that were measured."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {(one["variant"], one["shots"], one["seed"]): one for one in found}


def table(measured: Mapping[Cell, Mapping[str, Any]], shots: Sequence[int]) -> str:
    """F1 as mean ± standard deviation over seeds, and their number where it is not that of most, in Markdown."""
    counts = sorted(shots)
    most = max((len(_of(measured, variant, count)) for variant in VARIANTS for count in counts), default=0)
    lines = [
        "| variant | " + " | ".join(f"{count} points" for count in counts) + " | steps | minutes |",
        "| --- |" + " ---: |" * (len(counts) + 2),
    ]
    for variant in VARIANTS:
        mine = [one for count in counts for one in _of(measured, variant, count)]
        entries = [_entry([one["f1"] for one in _of(measured, variant, count)], most) for count in counts]
        steps = " to ".join(str(each) for each in sorted({one["steps"] for one in mine if "best_step" in one}))
        minutes = f"{np.mean([one['seconds'] for one in mine]) / 60:.1f}" if mine else ""
        lines.append(f"| {variant} | " + " | ".join(entries) + f" | {steps} | {minutes} |")
    return "\n".join(lines)


def effects(measured: Mapping[Cell, Mapping[str, Any]]) -> str:
    """What each variant changes in F1 against the one it adds to, paired, in Markdown.

    A data set counts once, with the mean over its numbers of points, which share points and are not independent:
    mean ± standard error over data sets, and how many of all pairs gain.
    """
    lines = ["| variant | against | change of F1 | gains |", "| --- | --- | ---: | ---: |"]
    for variant, base in AGAINST.items():
        pairs = [(cell, (base, *cell[1:])) for cell in measured if cell[0] == variant and (base, *cell[1:]) in measured]
        changes = {one: measured[one]["f1"] - measured[other]["f1"] for one, other in pairs}
        seeds = sorted({seed for _, _, seed in changes})
        each = [np.mean([change for cell, change in changes.items() if cell[2] == seed]) for seed in seeds]
        if not each:
            lines.append(f"| {variant} | {base} | not measured | |")
            continue
        error = f" ± {np.std(each, ddof=1) / len(each) ** 0.5:.2f}" if len(each) > 1 else ""
        gains = sum(change > 0 for change in changes.values())
        lines.append(f"| {variant} | {base} | {np.mean(each):+.2f}{error} | {gains} of {len(changes)} |")
    return "\n".join(lines)


def _of(measured: Mapping[Cell, Mapping[str, Any]], variant: str, shots: int) -> list[Mapping[str, Any]]:
    return [one for (name, count, _), one in measured.items() if (name, count) == (variant, shots)]


def _entry(values: Sequence[float], most: int) -> str:
    if not values:
        return "not measured"
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}" + (f" (n = {len(values)})" if len(values) < most else "")


@lru_cache(maxsize=1)
def _data(templates: Path | None, seed: int, tuning: bool) -> DataSet:
    return draw_data_set(templates, seed, MOST, tuning=tuning)


def _work(job: tuple[Path, Cell, Path | None, dict[str, Any], bool]) -> None:
    folder, cell, templates, settings, tuning = job
    torch.set_num_threads(1)
    variant, shots, seed = cell
    data = _data(templates, seed, tuning)
    began = time.perf_counter()
    found = run_variant(data, variant, shots, seed, sasi_settings(settings))
    plan = {name: settings["training"][name] for name in ("steps", "batch")}
    whole = {"variant": variant, "shots": shots, "seed": seed, "tuning": tuning, **plan, **found}
    whole["seconds"] = time.perf_counter() - began
    partial = cell_path(folder, cell).with_suffix(".partial")
    partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    partial.replace(cell_path(folder, cell))
    print(f"{variant}, {shots} points, seed {seed}: F1 {found['f1']:.3f}, {whole['seconds']:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS), help=f"at most {MOST}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=None, help="supervised steps  [default: the settings']")
    parser.add_argument("--batch", type=int, default=None, help="windows in a step  [default: the settings']")
    parser.add_argument("--tuning", action="store_true", help="kinds that training saw, to choose settings on")
    parser.add_argument("--threads", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--readme", type=Path, default=None, help="file with the marks to write the table between")
    given = parser.parse_args(arguments)
    if given.readme is not None:
        around(given.readme, MARKS)  # before the work, not after it
    stated = {"steps": given.steps, "batch": given.batch}
    base = sasi_settings({"training": {name: value for name, value in stated.items() if value is not None}})
    wanted = cells(given.shots, given.seeds, given.variants)
    measure(given.out, wanted, given.templates, base, tuning=given.tuning, processes=given.threads)
    measured = read(given.out)
    made = f"{table(measured, given.shots)}\n\n{effects(measured)}"
    if given.readme is not None:
        replace_part(given.readme, MARKS, made)
    print(made)


if __name__ == "__main__":
    main()
