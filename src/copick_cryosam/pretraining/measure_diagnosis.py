"""Measure how often the diagnosis names a wrong seed, and a right one, on kinds that training saw.

    python -m copick_cryosam.pretraining.measure_diagnosis --templates FOLDER [--seeds 5] [--repeats 3] \\
        [--choose 1] [--seed 2]

Every repeat simulates a data set of two tomograms. Seeds are drawn among the particles of a kind in both of them:
all right, or one replaced by a particle of another kind, by a place between particles, on clutter (membranes,
filaments, gold beads), or one radius beside a particle. On the data sets of `--choose` the threshold is found at
which `--false-rate` of the right seeds among right ones are named; on those of `--seed` that threshold and the
package's own are judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.diagnosis import NEARNESS, SeedEvidence, Surroundings, diagnose
from copick_cryosam.errors import SeedError
from copick_cryosam.findings import Tomogram
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.simulate import Specimen, centres_inside, crop_truth
from copick_cryosam.pretraining.validate import Layout, Survey, survey_on, tuning_shapes
from copick_cryosam.types import VoxelPoints

LAYOUT = Layout(shape_zyx=(64, 176, 176), count=8)
MOST = 5
"""Seeds of each sort that are segmented in each tomogram."""
TRIALS = 6
"""Sets of seeds drawn of each kind in each data set."""
WRONG = ("other kind", "between", "clutter", "one radius off")

Clicks = dict[str, NDArray[np.float64]]
Trial = tuple[str, list[SeedEvidence]]


def clicks_of(specimen: Specimen, shape: tuple[int, ...], kind: int, radius: float, rng: np.random.Generator) -> Clicks:
    """Where somebody may click in a tomogram, by sort; shape (N, 3) each, at most `MOST`, voxels z, y, x."""
    last = np.array(shape) - 1
    margin = np.array([0.5, 1, 1]) * radius
    everything, own = centres_inside(specimen), centres_inside(specimen, kind)
    foreign = np.array([one for one in everything if not (one == own).all(axis=1).any()]).reshape(-1, 3)
    labels, clutter, _ = crop_truth(specimen)
    free = ndimage.distance_transform_edt((labels == 0) & ~clutter) > 0.6 * radius
    beside = rng.normal(size=own.shape)
    beside *= radius / np.linalg.norm(beside, axis=1, keepdims=True)
    sorts = {
        "right": own[((own > margin) & (own < last - margin)).all(axis=1)],
        "other kind": foreign,
        "between": np.argwhere(free).astype(np.float64),
        "clutter": np.argwhere(clutter).astype(np.float64),
        "one radius off": own + beside,
    }
    chosen = {sort: rng.permutation(points)[:MOST] for sort, points in sorts.items()}
    # a click is never exact: about a quarter of the radius off
    return {
        sort: np.clip(points + rng.normal(size=points.shape) * 0.15 * radius, 0, last)
        for sort, points in chosen.items()
    }


def single(evidence: SeedEvidence, sort: str) -> list[SeedEvidence]:
    """The seeds of a tomogram one by one, named after their sort."""
    member = np.cumsum(evidence.masked) - 1
    return [
        replace(
            evidence,
            run=sort,
            points=VoxelPoints(evidence.points.zyx[i : i + 1]),
            masked=evidence.masked[i : i + 1],
            features=evidence.features[member[i] : member[i] + 1] if masked else evidence.features[:0],
            surroundings=Surroundings(
                around=evidence.surroundings.around[i : i + 1], elsewhere=evidence.surroundings.elsewhere
            ),
        )
        for i, masked in enumerate(evidence.masked)
    ]


def evidence_of(
    model: CryoSAM,
    opened: Sequence[Tomogram],
    specimens: Sequence[Specimen],
    kind: int,
    radius: float,
    rng: np.random.Generator,
) -> dict[str, list[SeedEvidence]]:
    """All seeds of a kind in a data set, by sort."""
    found: dict[str, list[SeedEvidence]] = {sort: [] for sort in ("right", *WRONG)}
    for tomogram, specimen in zip(opened, specimens, strict=True):
        for sort, points in clicks_of(specimen, tomogram.volume.shape, kind, radius, rng).items():
            if len(points) == 0:
                continue
            try:
                seeded = model.seed(tomogram, VoxelPoints(points), radius)
            except SeedError:
                continue  # none of these could be segmented, which is told without any diagnosis
            found[sort] += single(seeded.evidence(sort), sort)
    return found


def trials(found: dict[str, list[SeedEvidence]], seeds: int, rng: np.random.Generator) -> Iterator[Trial]:
    """Sets of seeds, and what is wrong with the first of each."""
    right = [one for one in found["right"] if one.masked[0]]
    if len(right) < seeds:
        return
    for _ in range(TRIALS):
        chosen = [right[i] for i in rng.permutation(len(right))[:seeds]]
        yield "right", chosen
        for sort in WRONG:
            if found[sort]:
                yield sort, [found[sort][int(rng.integers(len(found[sort])))], *chosen[1:]]


def draw(model: CryoSAM, survey: Survey, seeds: int) -> list[Trial]:
    """Sets of seeds of all kinds in all data sets."""
    found: list[Trial] = []
    for drawn in survey.draw():
        opened = drawn.opened(model)
        for kind, shape in enumerate(drawn.shapes):
            evidence = evidence_of(model, opened, drawn.specimens, kind, shape.radius, drawn.rng)
            found += trials(evidence, seeds, drawn.rng)
    return found


def threshold_of(drawn: Sequence[Trial], false_rate: float) -> float:
    """The nearness under which this share of the seeds of sets without a wrong one lies."""
    everything = [one for wrong, some in drawn if wrong == "right" for one in diagnose(some, threshold=-np.inf)]
    return float(np.quantile([one.nearness for one in everything if one.nearness is not None], false_rate))


def table(drawn: Sequence[Trial], threshold: float) -> str:
    """Markdown: by what was wrong, how often that seed had no mask, was named, was found near, and a right one named.

    "named" counts seeds that have a mask.
    """
    lines = ["| wrong seed | n | no mask | named | found near | right seed named |", "|" + "---|" * 6]
    for sort in ("right", *WRONG):
        judged = [diagnose(some, threshold=threshold) for wrong, some in drawn if wrong == sort]
        wrong = [] if sort == "right" else [one[0] for one in judged]
        masked = [one for one in wrong if one.verdict != "no mask"]
        right = [one for some in judged for one in (some if sort == "right" else some[1:])]
        cells = [
            f"{len(judged)}",
            _share([one.verdict == "no mask" for one in wrong]),
            _share([one.suspicious for one in masked]),
            _share([bool(one.found) for one in wrong]),
            _share([one.suspicious for one in right]),
        ]
        lines.append(f"| {'none' if sort == 'right' else sort} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(which: Sequence[bool]) -> str:
    return f"{np.mean(which):.3f}" if which else "–"


def main() -> None:
    """Parse the command line, choose, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=5, help="in a set, of which one may be wrong; at least 3")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--snr", type=float, nargs="+", default=(0.05, 0.1))
    parser.add_argument("--choose", type=int, default=1, help="random seed of the data sets to choose on")
    parser.add_argument("--seed", type=int, default=2, help="random seed of the data sets to report on")
    parser.add_argument("--false-rate", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seeds < 3:
        parser.error(f"--seeds: expected at least 3, found {arguments.seeds}")
    torch.set_num_threads(arguments.threads)
    model = CryoSAM.from_preset("embedded", device="cpu")
    survey = survey_on(arguments, tuning_shapes, LAYOUT)
    to_choose = draw(model, replace(survey, seed=arguments.choose), arguments.seeds)
    chosen = threshold_of(to_choose, arguments.false_rate)
    drawn = draw(model, survey, arguments.seeds)
    for name, threshold in (("chosen", chosen), ("of the package", NEARNESS)):
        print(f"\nthreshold {name}: {threshold:.2f}\n\n{table(drawn, threshold)}")


if __name__ == "__main__":
    main()
