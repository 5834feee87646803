"""Score the embedded models on kinds that training never saw, through the pipeline that users run.

    python -m copick_cryosam.pretraining.validate --templates FOLDER [--repeats 3] [--precision fp32] [--json FILE]
        [--shape 100 100 100 --count 3 --tomograms 3] [--tuning | --fresh | --doubled]

Every repeat simulates a data set of two crowded tomograms (or as the options say) with the held-out maps and
families. One particle of a kind in the first tomogram is the only seed; all tomograms are searched. The program
chooses its own threshold; beside it stand the best possible threshold (oracle) and the trivial baseline,
a difference of Gaussians of the object's radius, with its own threshold and with the best possible one.
Tolerance one radius, one-to-one, the seed left out of both sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam import evaluation
from copick_cryosam.baseline import pick_blobs, propose_blobs
from copick_cryosam.config import Precision, Settings, override, preset
from copick_cryosam.errors import SeedError
from copick_cryosam.findings import Found, Tomogram
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.fresh_families import doubled_shapes, fresh_shapes
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.pool import FAMILIES_OF, HELD_OUT_FAMILIES, HELD_OUT_MAPS, training_maps
from copick_cryosam.pretraining.ranking import search
from copick_cryosam.pretraining.shapes import Shape, random_shape, read_shape
from copick_cryosam.pretraining.simulate import Scene, Specimen, centres_inside, crop_truth, simulate
from copick_cryosam.types import AngstromPoints, Grid, Instance, VoxelPoints, centroids


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How large a simulated data set is.

    Attributes
    ----------
    shape_zyx : voxels of each tomogram
    count : particles of each kind that are tried to be placed in each tomogram
    tomograms : how many there are
    """

    shape_zyx: tuple[int, int, int] = (72, 224, 224)
    count: int = 14
    tomograms: int = 2


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """One kind of particle in one simulated data set."""

    repeat: int
    snr: float
    kind: str
    truth: int
    f1: float
    precision: float
    recall: float
    oracle_f1: float
    proposal_recall: float
    baseline_f1: float
    baseline_oracle_f1: float
    dice: float


def held_out_shapes(templates: Path | None, rng: np.random.Generator) -> list[Shape]:
    """The held-out maps where their folder is given, and two shapes of each held-out family."""
    shapes = []
    if templates is not None:
        shapes += [read_shape(templates / f"{name}.mrc") for name in HELD_OUT_MAPS]
    for family in HELD_OUT_FAMILIES:
        shapes += [random_shape(rng, family=family, radius=radius, name=f"{family}-{radius}") for radius in (8, 11)]
    return shapes


def tuning_shapes(templates: Path | None, rng: np.random.Generator) -> list[Shape]:
    """Kinds to choose settings on, so that the held-out ones stay untouched: training maps and families."""
    maps = [shape for shape in training_maps(templates) if 5 < shape.radius < 14]
    shapes = [maps[k] for k in rng.choice(len(maps), size=3, replace=False)] if maps else []
    families = sorted(FAMILIES_OF["usual"])
    for family in rng.choice(families, size=4, replace=False):
        radius = float(rng.uniform(6, 12))
        shapes.append(random_shape(rng, family=str(family), radius=radius, name=f"{family}-{radius:.0f}"))
    return shapes


def shapes_of(templates: Path | None, rng: np.random.Generator, *, tuning: bool) -> list[Shape]:
    """The kinds to choose settings on, or those to report on."""
    return (tuning_shapes if tuning else held_out_shapes)(templates, rng)


def data_set(
    shapes: Sequence[Shape], snr: float, rng: np.random.Generator, layout: Layout
) -> list[tuple[NDArray[np.float32], Specimen]]:
    """Tomograms of one data set: the conditions of a good modern one, two membranes each."""
    imaging = Imaging(snr=snr, tilt_range=60, tilt_step=3, defocus=float(rng.uniform(20000, 45000)))
    counts = (layout.count,) * len(shapes)
    scene = Scene(shape_zyx=layout.shape_zyx, counts=counts, membranes=2, filaments=1, beads=2, gap=1)
    return [simulate(scene, shapes, imaging, rng) for _ in range(layout.tomograms)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """One simulated data set; whoever measures on it goes on with its random numbers.

    Attributes
    ----------
    tomograms : volume and specimen of each
    """

    repeat: int
    snr: float
    rng: np.random.Generator
    shapes: list[Shape]
    tomograms: list[tuple[NDArray[np.float32], Specimen]]

    @property
    def specimens(self) -> list[Specimen]:
        """Of all tomograms."""
        return [specimen for _, specimen in self.tomograms]

    def opened(self, model: CryoSAM) -> list[Tomogram]:
        """All tomograms, encoded."""
        return [model.open(volume, None, 8.0, polarity="light") for volume, _ in self.tomograms]


Draw = Callable[[Path | None, np.random.Generator], list[Shape]]
"""Draws the kinds of a data set."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The simulated data sets that something is measured on.

    Attributes
    ----------
    templates : folder of density maps
    repeats : data sets at each signal-to-noise ratio
    shapes : draws the kinds of a data set, from the templates: `held_out_shapes`, say
    """

    templates: Path | None
    repeats: int
    snrs: Sequence[float]
    seed: int
    shapes: Draw
    layout: Layout = field(default_factory=Layout)

    def draw(self) -> Iterator[Drawn]:
        """One data set after the other, each from random numbers of its own."""
        for repeat in range(self.repeats):
            for snr in self.snrs:
                rng = np.random.default_rng([self.seed, repeat, round(1000 * snr)])
                kinds = self.shapes(self.templates, rng)
                tomograms = data_set(kinds, snr, rng, self.layout)
                yield Drawn(repeat=repeat, snr=snr, rng=rng, shapes=kinds, tomograms=tomograms)


def score_kind(
    model: CryoSAM,
    opened: Sequence[Tomogram],
    specimens: Sequence[Specimen],
    kind: int,
    shape: Shape,
    rng: np.random.Generator,
) -> dict[str, float] | None:
    """One seed in the first tomogram, scored over all; None where there are too few particles."""
    truths = [centres_inside(specimen, kind) for specimen in specimens]
    if len(truths[0]) < 2:
        return None
    size = np.array(opened[0].volume.shape)
    margin = np.array([0.5, 1, 1]) * shape.radius
    inner = np.flatnonzero(((truths[0] > margin) & (truths[0] < size - margin)).all(axis=1))
    if len(inner) == 0:
        return None
    # a click is never exact: about a quarter of the radius off
    click = truths[0][rng.choice(inner)] + rng.normal(size=3) * 0.15 * shape.radius
    seed = VoxelPoints(np.clip(click, 0, size - 1))
    try:
        seeded = model.seed(opened[0], seed, shape.radius)
    except SeedError:
        return dict.fromkeys(("f1", "precision", "recall", "oracle_f1", "proposal_recall", "dice"), 0.0) | _baseline(
            opened, truths, seed, shape.radius
        )
    query = model.query([seeded])
    found = list(search(model, opened, query, [seeded], shape.radius))
    picks = [
        _scores(centroids(f.instances), _rank(f), t, seed, shape.radius, i)
        for i, (f, t) in enumerate(zip(found, truths, strict=True))
    ]
    proposals = [
        _scores(f.proposals.points, f.proposals.score, t, seed, shape.radius, i)
        for i, (f, t) in enumerate(zip(found, truths, strict=True))
    ]
    pooled = evaluation.pool(picks)
    everything = evaluation.pool(proposals)
    dices = [d for f, s in zip(found, specimens, strict=True) for d in mask_dices(f.instances, s, kind)]
    return {
        "truth": float(sum(len(t) for t in truths)),
        "f1": pooled.f1,
        "precision": pooled.precision,
        "recall": pooled.recall,
        "oracle_f1": evaluation.best_threshold(everything).f_beta,
        "proposal_recall": everything.recall,
        "dice": float(np.mean(dices)) if dices else float("nan"),
    } | _baseline(opened, truths, seed, shape.radius)


def _rank(found: Found) -> NDArray[np.float64]:
    return np.array([one.score for one in found.instances], dtype=np.float64)


def _scores(
    points: VoxelPoints,
    scores: NDArray[np.float64],
    truth: NDArray[np.float64],
    seed: VoxelPoints,
    radius: float,
    run: int,
) -> evaluation.LocalizationScores:
    """Scores of one tomogram at 1 Å per voxel; the seed lies in the first."""
    grid = Grid((1, 1, 1), 1.0)  # only its voxel spacing is used
    predicted, true = grid.to_angstrom(points), grid.to_angstrom(VoxelPoints(truth))
    if run == 0:
        keep_predicted, keep_true = evaluation.exclude_seeds(predicted, true, grid.to_angstrom(seed), radius)
        predicted, scores = AngstromPoints(predicted.xyz[keep_predicted]), scores[keep_predicted]
        true = AngstromPoints(true.xyz[keep_true])
    return evaluation.localization(predicted, scores, true, radius)


def _baseline(
    opened: Sequence[Tomogram], truths: Sequence[NDArray[np.float64]], seed: VoxelPoints, radius: float
) -> dict[str, float]:
    chosen, everything = [], []
    for run, (tomogram, truth) in enumerate(zip(opened, truths, strict=True)):
        some, peaks = pick_blobs(tomogram.volume, radius), propose_blobs(tomogram.volume, radius)
        chosen.append(_scores(some.points, some.score, truth, seed, radius, run))
        everything.append(_scores(peaks.points, peaks.score, truth, seed, radius, run))
    return {
        "baseline_f1": evaluation.pool(chosen).f1,
        "baseline_oracle_f1": evaluation.best_threshold(evaluation.pool(everything)).f_beta,
    }


def mask_dices(instances: Sequence[Instance], specimen: Specimen, kind: int) -> list[float]:
    """Dice of every instance that hits a particle of the kind, against that particle's true mask."""
    labels, _, _ = crop_truth(specimen)
    dices = []
    sizes = np.bincount(labels.ravel(), minlength=len(specimen.kinds) + 1)
    for one in instances:
        found = labels[one.slices][one.mask]
        counts = np.bincount(found, minlength=len(sizes))
        counts[0] = 0
        best = int(counts.argmax())
        if counts[best] and specimen.kinds[best - 1] == kind:
            dices.append(2 * counts[best] / (one.size + sizes[best]))
    return dices


def validate(model: CryoSAM, survey: Survey) -> list[KindScore]:
    """Every kind of every data set."""
    rows = []
    for drawn in survey.draw():
        opened, specimens = drawn.opened(model), drawn.specimens
        for kind, shape in enumerate(drawn.shapes):
            scores = score_kind(model, opened, specimens, kind, shape, drawn.rng)
            if scores is not None:
                scores["truth"] = sum(len(centres_inside(s, kind)) for s in specimens)
                rows.append(KindScore(repeat=drawn.repeat, snr=drawn.snr, kind=shape.name, **scores))  # type: ignore[arg-type]
    return rows


def table(rows: Sequence[KindScore]) -> str:
    """A Markdown table: mean over repeats and signal-to-noise ratios per kind, then over all kinds."""
    columns = ("f1", "precision", "recall", "oracle_f1", "proposal_recall", "baseline_f1", "baseline_oracle_f1", "dice")
    head = "| kind | n | " + " | ".join(c.replace("_", " ") for c in columns) + " |"
    lines = [head, "|" + "---|" * (len(columns) + 2)]
    for kind in [*dict.fromkeys(row.kind for row in rows), "all"]:
        some = [row for row in rows if kind in (row.kind, "all")]
        cells = []
        for column in columns:
            values = np.array([getattr(row, column) for row in some], dtype=float)
            cells.append(f"{np.nanmean(values):.2f} ± {np.nanstd(values):.2f}")
        lines.append(f"| {kind} | {sum(int(row.truth) for row in some)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options(description: str | None, *, seed: int, threads: int = 2) -> argparse.ArgumentParser:
    """The options that all measurements on simulated data sets have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--snr", type=float, nargs="+", default=(0.05, 0.1))
    parser.add_argument("--seed", type=int, default=seed)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--tuning", action="store_true", help="kinds that training saw, to choose settings on")
    kinds.add_argument("--fresh", action="store_true", help="kinds that no training draws, to choose settings on")
    kinds.add_argument("--doubled", action="store_true", help="such kinds, half of them of two complexes side by side")
    parser.add_argument("--threads", type=int, default=threads)
    usual = Layout()
    parser.add_argument("--shape", type=int, nargs=3, default=usual.shape_zyx, help="voxels of a tomogram, z y x")
    parser.add_argument("--count", type=int, default=usual.count, help="particles of each kind to place in a tomogram")
    parser.add_argument("--tomograms", type=int, default=usual.tomograms, help="of a data set")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both nets and of the search for poses"
    )
    parser.add_argument("--json", type=Path, default=None)
    return parser


def survey_of(arguments: argparse.Namespace, tuning: Draw = tuning_shapes) -> Survey:
    """The data sets that `options` asked for; `tuning` are the kinds that training saw."""
    asked = {"tuning": tuning, "fresh": fresh_shapes, "doubled": doubled_shapes}
    shapes = next((draw for name, draw in asked.items() if getattr(arguments, name)), held_out_shapes)
    layout = Layout(shape_zyx=tuple(arguments.shape), count=arguments.count, tomograms=arguments.tomograms)
    return survey_on(arguments, shapes, layout)


def survey_on(arguments: argparse.Namespace, shapes: Draw, layout: Layout) -> Survey:
    """Data sets of given kinds and layout, everything else as the options say."""
    return Survey(
        templates=arguments.templates,
        repeats=arguments.repeats,
        snrs=arguments.snr,
        seed=arguments.seed,
        shapes=shapes,
        layout=layout,
    )


def embedded(precision: Precision) -> Settings:
    """The preset of this name on the CPU, both nets and the second look computing in one precision."""
    parts = {name: {"precision": precision} for name in ("encoder", "segmenter", "alignment")}
    return override(preset("embedded"), {"device": "cpu", **parts})


def save_rows(rows: Sequence[Any], path: Path | None) -> None:
    """Scores, a dataclass each, as JSON; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def main() -> None:
    """Parse the command line, score, print the table."""
    arguments = options(__doc__, seed=1234).parse_args()
    torch.set_num_threads(arguments.threads)
    rows = validate(CryoSAM.from_settings(embedded(arguments.precision)), survey_of(arguments))
    save_rows(rows, arguments.json)
    print(table(rows))


if __name__ == "__main__":
    main()
