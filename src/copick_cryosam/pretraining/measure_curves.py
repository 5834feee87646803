"""Measure how well picking does over seeds, noise and imaging conditions, and draw it.

    python -m copick_cryosam.pretraining.measure_curves --templates FOLDER --out docs/figures \\
        [--repeats 1] [--small] [--tuning] [--threads 2] [--json FILE] [--readme README.md]

Every repeat is a data set of two simulated tomograms with the held-out kinds (`--tuning`: with kinds to choose
settings on). The scores are those of the proposals, with the program's own threshold, before any is segmented;
`validate` scores the whole pipeline, which also drops wrong sizes. Seeds are left out of both sides, see `curves`.
Written are label-efficiency.svg, noise.svg, reliability.svg and curves.md with every number; the same seed gives the
same numbers, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from copick_cryosam.pretraining.curves import Measured, Plan, measure_data_set
from copick_cryosam.pretraining.figures import label_figure, noise_figure, reliability_figure, write
from copick_cryosam.pretraining.marked_part import around, replace_part
from copick_cryosam.pretraining.summaries import (
    ENOUGH,
    compare,
    condition_table,
    curve_table,
    label_curve,
    noise_curve,
    pooled_reliability,
    reliability_table,
    threshold_loss,
)

PICTURES = {
    "label-efficiency.svg": "F1 over the number of seeds",
    "noise.svg": "F1 over the signal-to-noise ratio",
    "reliability.svg": "Fraction of true proposals over their expected precision",
}
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")
"""Between these lines a README holds what `--readme` writes."""
SMALL = Plan(shape_zyx=(48, 112, 112), count=8, seed_counts=(1, 2, 5))
"""A sixth of the voxels, and too few particles for more seeds: to see that everything works, not to report."""


def measure(
    plan: Plan, templates: Path | None, repeats: int, seed: int, *, tuning: bool = False, processes: int = 1
) -> Measured:
    """All data sets, the conditions of each shared between processes of one thread."""
    work = partial(_work, plan, templates, seed, tuning)
    jobs = [(repeat, (k, processes)) for repeat in range(repeats) for k in range(processes)]
    if processes > 1:
        # forked children would inherit the state of torch's threads
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as executor:
            found = list(executor.map(work, jobs))
    else:
        found = [work(job) for job in jobs]
    return Measured(
        rows=[row for one in found for row in one.rows],
        expectations=[expectation for one in found for expectation in one.expectations],
    )


def _work(plan: Plan, templates: Path | None, seed: int, tuning: bool, job: tuple[int, tuple[int, int]]) -> Measured:
    return measure_data_set(plan, templates, job[0], seed, tuning, share=job[1])


def report(measured: Measured, plan: Plan) -> str:
    """Every number in Markdown."""
    parts = [
        "Mean ± standard error over kinds and data sets; seeds left out of both sides; proposals before segmentation.",
        "## Seeds (SNR 0.1)\n\n" + curve_table(label_curve(measured.rows, plan.seed_counts), "seeds"),
    ]
    for seeds in plan.noise_seeds:
        table = curve_table(noise_curve(measured.rows, plan.snrs, seeds), "SNR per tilt image")
        parts.append(f"## Noise, {_counted(seeds, 'seed')}\n\n{table}")
    parts.append(
        "## Conditions, one seed\n\nChanges are paired: same specimens, same seeds.\n\n"
        + condition_table(compare(measured.rows, plan.conditions))
    )
    for seeds in plan.noise_seeds:
        curve = pooled_reliability(measured.expectations, plan, seeds)
        parts.append(
            f"## Expected precision, {_counted(seeds, 'seed')}, all signal-to-noise ratios\n\n"
            f"Largest deviation of a bin of at least {ENOUGH} proposals: {curve.deviation:.2f}. "
            f"F1 that the own threshold loses against the best one: {threshold_loss(measured.rows, seeds, plan)}.\n\n"
            + reliability_table(curve)
        )
    return "\n\n".join(parts) + "\n"


def readme_part(measured: Measured, plan: Plan, folder: str) -> str:
    """The pictures in `folder`, reliability in words, and the table of conditions, for a README."""
    pictures = "\n\n".join(f"![{what}]({folder}/{name})" for name, what in PICTURES.items())
    sentences = [f"{_counted(len({row.repeat for row in measured.rows}), 'data set')}."]
    for seeds in plan.noise_seeds:
        curve = pooled_reliability(measured.expectations, plan, seeds)
        loss = threshold_loss(measured.rows, seeds, plan)
        sentences.append(
            f"With {_counted(seeds, 'seed')}, expected precision and the fraction that is true differ by at most "
            f"{curve.deviation:.2f} (bins of at least {ENOUGH} proposals), and the own threshold loses {loss} of F1."
        )
    table = condition_table(compare(measured.rows, plan.conditions))
    return (
        f"{pictures}\n\n"
        + "\n".join(sentences)
        + "\n\nOne seed; changes are paired, on the same specimens:\n\n"
        + table
    )


def draw(measured: Measured, plan: Plan) -> dict[str, str]:
    """The pictures by file name, as SVG."""
    return {
        "label-efficiency.svg": label_figure(label_curve(measured.rows, plan.seed_counts)),
        "noise.svg": noise_figure({n: noise_curve(measured.rows, plan.snrs, n) for n in plan.noise_seeds}),
        "reliability.svg": reliability_figure(
            {n: pooled_reliability(measured.expectations, plan, n) for n in plan.noise_seeds}
        ),
    }


def as_json(measured: Measured, plan: Plan) -> dict[str, Any]:
    """Rows and summaries; what is not known is null."""
    reliabilities = {n: pooled_reliability(measured.expectations, plan, n) for n in plan.noise_seeds}
    whole = {
        "plan": asdict(plan),
        "label_curve": [asdict(point) for point in label_curve(measured.rows, plan.seed_counts)],
        "noise_curve": {
            n: [asdict(point) for point in noise_curve(measured.rows, plan.snrs, n)] for n in plan.noise_seeds
        },
        "conditions": [asdict(one) for one in compare(measured.rows, plan.conditions)],
        "reliability": {
            n: {
                "expected": curve.expected.tolist(),
                "true": curve.true.tolist(),
                "count": curve.count.tolist(),
                "deviation": curve.deviation,
                "threshold_loss": asdict(threshold_loss(measured.rows, n, plan)),
            }
            for n, curve in reliabilities.items()
        },
        "rows": [asdict(row) for row in measured.rows],
    }
    return {name: _known(value) for name, value in whole.items()}


def main(arguments: Sequence[str] | None = None, plan: Plan | None = None) -> None:
    """Parse the command line, measure, write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures and curves.md")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--tuning", action="store_true", help="kinds that training saw, to choose settings on")
    parser.add_argument("--threads", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--small", action="store_true", help="scenes of a sixth of the volume, few particles: to try it out"
    )
    parser.add_argument("--readme", type=Path, default=None, help="file with the marks to write the conditions between")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    plan = plan or (SMALL if given.small else Plan())
    if given.readme is not None:
        around(given.readme, MARKS)  # before the work, not after it
    began = time.perf_counter()
    measured = measure(plan, given.templates, given.repeats, given.seed, tuning=given.tuning, processes=given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    text = report(measured, plan)
    write(given.out / "curves.md", text)
    for name, svg in draw(measured, plan).items():
        write(given.out / name, svg)
    if given.readme is not None:
        folder = Path(os.path.relpath(given.out, given.readme.parent)).as_posix()
        replace_part(given.readme, MARKS, readme_part(measured, plan, folder))
    if given.json is not None:
        write(given.json, json.dumps(as_json(measured, plan), indent=1))
    print(f"\n{text}\n{time.perf_counter() - began:.0f} s")


def _known(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


if __name__ == "__main__":
    main()
