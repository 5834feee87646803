"""Picking scores of one simulated data set under many conditions and with many numbers of seeds.

A data set is two specimens with the same kinds of particles. Under every condition each tomogram is encoded once and
each seed segmented once. Scored are the proposals above the program's own threshold, before any is segmented (see
`ranking`), and the proposals at the best threshold, all against the difference of Gaussians.

Seeds are left out of both sides. That alone would make many seeds look worse: they thin out the particles that are
left to find, not the background. So every hit counts (particles / particles left) times. The scores are those to be
expected in tomograms without seeds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam.baseline import otsu_threshold, propose_blobs
from copick_cryosam.errors import SeedError
from copick_cryosam.findings import Seeded, Tomogram
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.conditions import (
    CONDITIONS,
    NOISES,
    REFERENCE,
    Condition,
    noise_conditions,
    positions_under,
    tomogram_under,
)
from copick_cryosam.pretraining.exam import Clicks, Exam, draw_clicks
from copick_cryosam.pretraining.ranking import NOTHING, Ranked, gather, rank, segment_seeds
from copick_cryosam.pretraining.shapes import Shape
from copick_cryosam.pretraining.simulate import Scene, Specimen, build, centres_inside
from copick_cryosam.pretraining.validate import shapes_of
from copick_cryosam.types import FloatArray, Grid, Instance, VoxelPoints

LEAST_LEFT = 5
"""Particles beside the seeds that a kind must have."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on each data set.

    Attributes
    ----------
    shape_zyx : voxels of 10 Å, of each tomogram
    count : particles of each kind that are tried to be placed in each tomogram
    seed_counts : under the reference condition
    snrs, noise_seeds : signal-to-noise ratios, and the numbers of seeds under each
    conditions : measured with one seed
    """

    shape_zyx: tuple[int, int, int] = (72, 224, 224)
    count: int = 17
    tomograms: int = 2
    seed_counts: tuple[int, ...] = (1, 2, 5, 10, 20)
    snrs: tuple[float, ...] = NOISES
    noise_seeds: tuple[int, ...] = (1, 5)
    conditions: tuple[Condition, ...] = CONDITIONS
    preset: str = "embedded"

    def views(self) -> list[tuple[Condition, tuple[int, ...], bool]]:
        """Every condition, its numbers of seeds, and whether the baseline is scored under it."""
        noises = [
            (one, self.seed_counts if one is REFERENCE else self.noise_seeds, True)
            for one in noise_conditions([REFERENCE.snr, *(snr for snr in self.snrs if snr != REFERENCE.snr)])
        ]
        return [*noises, *((one, (1,), False) for one in self.conditions)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of particle in one data set, under one condition and with one number of seeds.

    Attributes
    ----------
    particles, left : true ones with and without the seeds
    f1, best : at the program's own threshold and at the best possible one
    baseline_f1, baseline_best : of the difference of Gaussians, NaN where it was not scored
    polarity : as the program decided, refused, or told
    """

    repeat: int
    condition: str
    kind: str
    seeds: int
    particles: int
    left: int
    f1: float
    best: float
    baseline_f1: float
    baseline_best: float
    polarity: str = "told"


@dataclass(frozen=True, eq=False, kw_only=True)
class Expectation:
    """Expected precision of proposals, shape (N,), whether each is a particle, and its tomogram; of one `Row`."""

    condition: str
    seeds: int
    expected: FloatArray
    true: NDArray[np.bool_]
    tomogram: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What one or more data sets gave."""

    rows: list[Row] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)


class View:
    """The tomograms of a data set under one condition, encoded when they are asked for."""

    def __init__(self, model: CryoSAM, condition: Condition, volumes: Sequence[NDArray[np.float32]]) -> None:
        self.model, self.condition, self.volumes = model, condition, volumes
        self._opened: dict[str, list[Tomogram]] = {}

    def opened(self, polarity: str) -> list[Tomogram]:
        """All tomograms, their particles taken as dark or light."""
        if polarity not in self._opened:
            self._opened[polarity] = [
                # the radius would only serve to find the polarity
                self.model.open(volume, None, 8.0, polarity=polarity, voxel_spacing=self.condition.voxel_spacing)
                for volume in self.volumes
            ]
        return self._opened[polarity]

    def decide(self, tomogram: int, seeds: VoxelPoints, radius: float) -> str:
        """The polarity that `CryoSAM.open` finds from seeds, without encoding the tomogram again for every kind.

        Raises
        ------
        SeedError
            The seeds tell nothing.
        """
        spacing = self.condition.voxel_spacing
        return self.model.polarity(self.volumes[tomogram], seeds, radius, voxel_spacing=spacing)


def score_view(
    view: View,
    truths: Sequence[FloatArray],
    clicks: Clicks,
    shape: Shape,
    counts: Sequence[int],
    repeat: int,
    *,
    baseline: bool,
) -> Measured:
    """One kind under one condition, with every number of seeds that leaves enough particles.

    Parameters
    ----------
    truths : centres of the kind in each tomogram, voxels of 10 Å
    """
    condition, model = view.condition, view.model
    radius = shape.radius / condition.scale
    particles = sum(map(len, truths))
    usable = [n for n in counts if n <= len(clicks.zyx) and particles - n >= LEAST_LEFT]
    measured = Measured()
    if not usable:
        return measured
    at = positions_under(clicks.zyx, condition)
    polarity = "light"
    if condition.dark:
        try:
            polarity = view.decide(int(clicks.tomogram[0]), VoxelPoints(at[:1]), radius)
        except SeedError:
            polarity = "refused"
    tomograms = view.opened("dark" if polarity == "refused" else polarity)
    instances: list[Instance | None] = [None] * max(usable)
    for where, tomogram in enumerate(tomograms):
        mine = clicks.among(where, max(usable) if polarity != "refused" else 0)
        for k, one in zip(mine, segment_seeds(model, tomogram, VoxelPoints(at[mine]), radius), strict=True):
            instances[k] = one
    blobs = [propose_blobs(one.volume, radius) for one in tomograms] if baseline else []
    grid = Grid((1, 1, 1), condition.voxel_spacing)  # only its voxel spacing is used
    for count in usable:
        exam = Exam(
            truths=[grid.to_angstrom(VoxelPoints(positions_under(truth, condition))) for truth in truths],
            seeds=[grid.to_angstrom(VoxelPoints(at[clicks.among(t, count)])) for t in range(len(truths))],
            tolerance=shape.radius * 10.0,
            grid=grid,
        )
        ranked = _search(model, tomograms, clicks, at, instances, count, radius)
        own, _ = exam.score([r.picks for r in ranked])
        everything, kept = exam.score([(r.points, r.score) for r in ranked])
        scores = {"f1": exam.f1(own), "best": exam.best_f1(everything)}
        scores |= {"baseline_f1": float("nan"), "baseline_best": float("nan")}
        if baseline:
            bright = [one[one.score >= otsu_threshold(one.score)] for one in blobs]
            scores["baseline_f1"] = exam.f1(exam.score([(b.points, b.score) for b in bright])[0])
            scores["baseline_best"] = exam.best_f1(exam.score([(b.points, b.score) for b in blobs])[0])
        told = polarity if condition.dark else "told"
        measured.rows.append(
            Row(
                repeat=repeat,
                condition=condition.name,
                kind=shape.name,
                seeds=count,
                particles=particles,
                left=everything.truth,
                polarity=told,
                **scores,
            )
        )
        expected = np.concatenate([r.expected_precision[keep] for r, keep in zip(ranked, kept, strict=True)])
        place = np.repeat(np.arange(len(kept)), [keep.sum() for keep in kept])
        told_apart = np.isfinite(expected)
        measured.expectations.append(
            Expectation(
                condition=condition.name,
                seeds=count,
                expected=expected[told_apart],
                true=everything.gains[told_apart],
                tomogram=place[told_apart],
            )
        )
    return measured


def _search(
    model: CryoSAM,
    tomograms: Sequence[Tomogram],
    clicks: Clicks,
    at: FloatArray,
    instances: Sequence[Instance | None],
    count: int,
    radius: float,
) -> list[Ranked]:
    """The proposals of every tomogram from the first `count` seeds; none where no seed has a mask."""
    seeded: list[Seeded] = []
    for where, tomogram in enumerate(tomograms):
        some = [(k, one) for k in clicks.among(where, count) if (one := instances[k]) is not None]
        points = VoxelPoints(at[[k for k, _ in some]])
        found = gather(model, tomogram, [one for _, one in some], points, radius)
        seeded += [] if found is None else [found]
    if not seeded:
        return [NOTHING for _ in tomograms]
    query = model.query(seeded)
    return rank(model, tomograms, query, seeded, radius)


def measure_data_set(
    plan: Plan, templates: Path | None, repeat: int, seed: int, tuning: bool, share: tuple[int, int] = (0, 1)
) -> Measured:
    """Simulate one data set and score all its kinds under all conditions; everything follows from the seed.

    Parameters
    ----------
    share : (k, n), every n-th condition from the k-th on, so that processes can share a data set
    """
    torch.set_num_threads(1)
    began = time.perf_counter()
    rng = np.random.default_rng([seed, repeat])
    shapes = shapes_of(templates, rng, tuning=tuning)
    scene = Scene(
        shape_zyx=plan.shape_zyx, counts=(plan.count,) * len(shapes), membranes=2, filaments=1, beads=2, gap=1
    )
    specimens: list[Specimen] = [build(scene, shapes, rng) for _ in range(plan.tomograms)]
    defocus = float(rng.uniform(20000, 45000))
    truths = [[centres_inside(one, kind) for one in specimens] for kind in range(len(shapes))]
    most = max((*plan.seed_counts, *plan.noise_seeds))
    clicks = [draw_clicks(t, plan.shape_zyx, s.radius, most, rng) for t, s in zip(truths, shapes, strict=True)]
    model = CryoSAM.from_preset(plan.preset, device="cpu")
    whole = Measured()
    views = plan.views()[share[0] :: share[1]]
    for done, (condition, counts, baseline) in enumerate(views, start=1):
        # the same noise under every condition, as far as its shape is the same
        volumes = [
            tomogram_under(one, condition, defocus, np.random.default_rng([seed, repeat, t]))
            for t, one in enumerate(specimens)
        ]
        view = View(model, condition, volumes)
        for kind, shape in enumerate(shapes):
            found = score_view(view, truths[kind], clicks[kind], shape, counts, repeat, baseline=baseline)
            whole.rows.extend(found.rows)
            whole.expectations.extend(found.expectations)
        seconds = time.perf_counter() - began
        print(f"data set {repeat + 1}: {done} of {len(views)}, {condition.name}, {seconds:.0f} s", flush=True)
    return whole
