"""Score zero-seed discovery: particles of any kind, and whether its clusters are the kinds.

    python -m copick_cryosam.pretraining.validate_discovery --templates FOLDER [--tuning | --fresh | --doubled]
        [--repeats 3] [--json FILE]

Every repeat simulates a data set of two crowded tomograms. Nothing is told but the volumes: polarity, sizes,
threshold and the number of clusters are the program's. A pick counts within one radius of a true centre, that
particle's own, one to one. Particles that the volume's side cuts have no true centre in it; picks on them are left
out and counted apart. Beside it stands the trivial baseline, a difference of Gaussians of the median true radius,
which is told the polarity and that radius, with Otsu's threshold and with the best possible one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb

from copick_cryosam.assignment import assign, close_pairs, gains_in_order
from copick_cryosam.baseline import otsu_threshold, propose_blobs
from copick_cryosam.discovery import discover
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.pool import FAMILIES_OF
from copick_cryosam.pretraining.shapes import Shape, random_shape
from copick_cryosam.pretraining.simulate import MARGIN, Specimen, crop_truth
from copick_cryosam.pretraining.validate import Survey, embedded, options, save_rows, survey_of, tuning_shapes
from copick_cryosam.types import FloatArray, VoxelPoints

__all__ = ["SetScore", "adjusted_rand_index", "score_set"]


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """One simulated data set; shares are of all false picks."""

    repeat: int
    snr: float
    truth: int
    f1: float
    precision: float
    recall: float
    oracle_f1: float
    baseline_f1: float
    baseline_oracle_f1: float
    false: int
    on_clutter: float
    doubled: float
    on_cut: int
    radius_ratio: float
    diameter_ratio: float
    kinds: int
    clusters: int
    purity: float
    rand_index: float


@dataclass(frozen=True, eq=False)
class _Truth:
    centres: FloatArray
    radii: FloatArray
    kinds: NDArray[np.int64]
    labels: NDArray[np.uint16]
    clutter: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    """By label, whether the particle's centre lies outside."""

    @classmethod
    def of(cls, specimen: Specimen) -> _Truth:
        labels, clutter, inside = crop_truth(specimen)
        cut = np.ones(len(specimen.kinds) + 1, dtype=bool)
        cut[0], cut[inside + 1] = False, False
        centres = specimen.centres_zyx[inside] - np.array([0, 0, MARGIN])
        return cls(centres, specimen.radii[inside], specimen.kinds[inside], labels, clutter, cut)

    def pairs(self, points: VoxelPoints) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
        """Picks and particles within that particle's radius, and their distance in radii."""
        rows, columns, distances = close_pairs(points.zyx, self.centres, self.radii)
        return rows, columns, distances / self.radii[columns]

    def label_at(self, points: VoxelPoints) -> NDArray[np.int64]:
        return self._at(self.labels, points).astype(np.int64)

    def on_clutter(self, points: VoxelPoints) -> NDArray[np.bool_]:
        """Whether membranes, filaments or beads lie within two voxels."""
        shifts = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), axis=-1).reshape(-1, 3)
        return np.asarray(np.any([self._at(self.clutter, VoxelPoints(points.zyx + shift)) for shift in shifts], axis=0))

    def _at(self, values: NDArray[Any], points: VoxelPoints) -> NDArray[Any]:
        index = np.clip(np.floor(points.zyx + 0.5).astype(int), 0, np.array(values.shape) - 1)
        return np.asarray(values[tuple(index.T)])


@dataclass
class _Tally:
    """Picks of several tomograms counted together."""

    truth: int = 0
    picks: int = 0
    hits: int = 0

    def add(self, picks: int, hits: int, truth: int) -> None:
        self.picks, self.hits, self.truth = self.picks + picks, self.hits + hits, self.truth + truth

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(self.picks + self.truth, 1)


def score_set(
    model: CryoSAM, data: Sequence[tuple[NDArray[np.float32], Specimen]], repeat: int, snr: float
) -> SetScore:
    """Discover in all tomograms of a data set together and score."""
    truths = [_Truth.of(specimen) for _, specimen in data]
    found = discover(model, [volume for volume, _ in data])
    median = float(np.median(np.concatenate([truth.radii for truth in truths])))
    ours, blobs = _Tally(), _Tally()
    cut = clutter = doubled = 0
    ratios, diameters, clusters, kinds = [], [], [], []
    curves: dict[str, list[tuple[FloatArray, NDArray[np.bool_]]]] = {"ours": [], "blobs": []}
    for (volume, _), truth, (picks, labels) in zip(data, truths, found, strict=True):
        rows, columns, distances = truth.pairs(picks.points)
        chosen = assign(rows, columns, distances, len(picks), len(truth.centres))
        hit = np.zeros(len(picks), dtype=bool)
        hit[rows[chosen]] = True
        on_cut = ~hit & truth.cut[truth.label_at(picks.points)]
        wrong = ~hit & ~on_cut
        again = np.isin(np.arange(len(picks)), rows) | (truth.label_at(picks.points) > 0)
        doubled += int((wrong & again).sum())
        clutter += int((wrong & ~again & truth.on_clutter(picks.points)).sum())
        cut += int(on_cut.sum())
        ours.add(int((~on_cut).sum()), len(chosen), len(truth.centres))
        ratios += list(picks.radius_vox[rows[chosen]] / truth.radii[columns[chosen]])
        diameters += list(picks.diameter_vox[rows[chosen]] / truth.radii[columns[chosen]] / 2)
        clusters += list(labels[rows[chosen]])
        kinds += list(truth.kinds[columns[chosen]])
        curves["ours"].append(_gains(picks.points, picks.probability, truth))
        peaks = propose_blobs(volume, median)
        some = peaks[peaks.score >= otsu_threshold(peaks.score)]
        edges = truth.pairs(some.points)
        left_out = _left_out(some.points, truth)
        blobs.add(
            len(some) - int(left_out.sum()), len(assign(*edges, len(some), len(truth.centres))), len(truth.centres)
        )
        curves["blobs"].append(_gains(peaks.points, peaks.score, truth))
    names, true = np.array(clusters), np.array(kinds)
    false = ours.picks - ours.hits
    return SetScore(
        repeat=repeat,
        snr=snr,
        truth=ours.truth,
        f1=ours.f1,
        precision=ours.hits / max(ours.picks, 1),
        recall=ours.hits / max(ours.truth, 1),
        oracle_f1=_best(curves["ours"], ours.truth),
        baseline_f1=blobs.f1,
        baseline_oracle_f1=_best(curves["blobs"], ours.truth),
        false=false,
        on_clutter=clutter / max(false, 1),
        doubled=doubled / max(false, 1),
        on_cut=cut,
        radius_ratio=float(np.median(ratios)),
        diameter_ratio=float(np.median(diameters)),
        kinds=len(np.unique(true)),
        clusters=int(max(labels.max(initial=0) for _, labels in found)),
        purity=float(sum(np.bincount(true[names == name]).max() for name in np.unique(names)) / max(len(true), 1)),
        rand_index=adjusted_rand_index(names, true),
    )


def adjusted_rand_index(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """How far two partitions agree, 1 if they are the same, 0 as expected by chance (Hubert and Arabie, 1985)."""
    first, second = (np.unique(one, return_inverse=True)[1] for one in (a, b))
    table = np.zeros((int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1))
    np.add.at(table, (first, second), 1)
    both, rows, columns = comb(table, 2).sum(), comb(table.sum(axis=1), 2).sum(), comb(table.sum(axis=0), 2).sum()
    expected = rows * columns / max(comb(len(a), 2), 1)
    span = (rows + columns) / 2 - expected
    return float((both - expected) / span) if span else 1.0


def _left_out(points: VoxelPoints, truth: _Truth) -> NDArray[np.bool_]:
    hit = np.isin(np.arange(len(points)), truth.pairs(points)[0])
    return ~hit & truth.cut[truth.label_at(points)]


def _gains(points: VoxelPoints, scores: FloatArray, truth: _Truth) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Scores, best first, and which of the picks hit a particle of their own; without picks on cut particles."""
    rows, columns, _ = truth.pairs(points)
    order = np.argsort(-scores, kind="stable")
    gains = gains_in_order(order, rows, columns)
    kept = order[~_left_out(points, truth)[order]]
    return scores[kept], gains[kept]


def _best(curves: Sequence[tuple[FloatArray, NDArray[np.bool_]]], truth: int) -> float:
    """The best F1 at any one threshold over all tomograms."""
    scores, gains = (np.concatenate(parts) for parts in zip(*curves, strict=True))
    hits = np.cumsum(gains[np.argsort(-scores, kind="stable")])
    return float((2 * hits / (truth + np.arange(1, len(hits) + 1))).max(initial=0.0))


def of_all_sizes(templates: Path | None, rng: np.random.Generator) -> list[Shape]:
    """The tuning kinds of `validate`, a small and a large one beside them, as radii of 4 to 17 voxels occur."""
    shapes = tuning_shapes(templates, rng)
    families = sorted(FAMILIES_OF["usual"])
    for low, high in ((4, 6), (12, 17)):
        radius = float(rng.uniform(low, high))
        shapes.append(random_shape(rng, family=str(rng.choice(families)), radius=radius, name=f"of-{radius:.0f}"))
    return shapes


def validate(model: CryoSAM, survey: Survey) -> list[SetScore]:
    """Every data set."""
    rows = []
    for drawn in survey.draw():
        rows.append(score_set(model, drawn.tomograms, drawn.repeat, drawn.snr))
        print(" ".join(f"{k}={v:.3g}" for k, v in asdict(rows[-1]).items()), flush=True)
    return rows


def table(rows: Sequence[SetScore]) -> str:
    """A Markdown table: mean ± standard deviation over the data sets of each signal-to-noise ratio."""
    columns = [field.name for field in fields(SetScore) if field.name not in ("repeat", "snr")]
    lines = ["| snr | " + " | ".join(name.replace("_", " ") for name in columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 1))
    for snr in dict.fromkeys(row.snr for row in rows):
        some = [row for row in rows if row.snr == snr]
        cells = []
        for name in columns:
            values = np.array([getattr(row, name) for row in some], dtype=float)
            cells.append(f"{values.mean():.2f} ± {values.std():.2f}")
        lines.append(f"| {snr:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, score, print the table."""
    arguments = options(__doc__, seed=4321).parse_args()
    torch.set_num_threads(arguments.threads)
    rows = validate(CryoSAM.from_settings(embedded(arguments.precision)), survey_of(arguments, of_all_sizes))
    save_rows(rows, arguments.json)
    print(table(rows))


if __name__ == "__main__":
    main()
