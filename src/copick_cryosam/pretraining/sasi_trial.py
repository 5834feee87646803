"""One trial of SaSi on simulated tomograms: what a variant finds from a few points, scored on tomograms it never saw.

A data set has four kinds of particles in four tomograms. Points are clicked in two of them; the other two are searched.
Every variant of a data set gets the same points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from copick_cryosam import evaluation
from copick_cryosam.contrast import standardise
from copick_cryosam.errors import InputError, SeedError
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.conditions import REFERENCE, tomogram_under
from copick_cryosam.pretraining.exam import JITTER
from copick_cryosam.pretraining.ranking import NOTHING, Ranked, rank
from copick_cryosam.pretraining.shapes import Shape
from copick_cryosam.pretraining.simulate import Scene, build, centres_inside
from copick_cryosam.pretraining.validate import shapes_of
from copick_cryosam.sasi.inference import Sasi
from copick_cryosam.sasi.model import SasiModel
from copick_cryosam.sasi.points import MOST_PSEUDO, LabelledPoints, ParticleClass, TrainingTomogram, with_pseudo
from copick_cryosam.sasi.settings import SasiSettings, sasi_settings
from copick_cryosam.sasi.training import train
from copick_cryosam.types import FloatArray, Grid, VoxelPoints, centroids

SHAPE = (48, 160, 160)
COUNT = 12
"""Particles of each kind that are tried to be placed in each tomogram."""
KINDS = 4
LEARNED, TESTED = 2, 2
"""Tomograms with points, and tomograms that are searched."""
MIN_PRECISION = 0.8
"""Expected precision that a pick of CryoSAM needs to become a pseudo-label."""

_OFF: dict[str, Any] = {
    "architecture": "deepfinder",
    "init": "none",
    "infill": {"enabled": False},
    "consistency": {"enabled": False},
    "self_supervision": {"mode": "none"},
}
_ON: dict[str, Any] = {
    "architecture": "deepfinder",
    "init": "none",
    "infill": {"enabled": True},
    "consistency": {"enabled": True},
    "self_supervision": {"mode": "iss"},
}
_EMBEDNET: dict[str, Any] = {"architecture": "embednet", "init": "embednet"}
VARIANTS: dict[str, Mapping[str, Any] | None] = {
    "supervised only": _OFF,
    "+ infill": {**_OFF, "infill": _ON["infill"]},
    "+ consistency": {**_OFF, "consistency": _ON["consistency"]},
    "+ self-supervision": {**_OFF, "self_supervision": _ON["self_supervision"]},
    "all": _ON,
    "all, from EmbedNet": {**_ON, **_EMBEDNET},
    "supervised only, from EmbedNet": {**_OFF, **_EMBEDNET},
    "CryoSAM": None,
    "ladder": {**_OFF, **_EMBEDNET},
}
"""Settings of each variant over the defaults; CryoSAM trains nothing, the ladder adds its sure picks as points."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """Simulated tomograms, the first ones with points.

    Attributes
    ----------
    volumes : standardised, particles bright
    truths : centres of each kind in each tomogram, voxels
    points : clicks of each kind in random order: tomogram and voxel position of each
    """

    shapes: Sequence[Shape]
    volumes: Sequence[np.ndarray[Any, np.dtype[np.float32]]]
    truths: Sequence[Sequence[FloatArray]]
    points: Sequence[Sequence[tuple[int, FloatArray]]]

    @cached_property
    def classes(self) -> list[ParticleClass]:
        """One for each kind."""
        return [ParticleClass(name=shape.name, radius_vox=shape.radius) for shape in self.shapes]

    def labelled(self, shots: int) -> list[TrainingTomogram]:
        """The tomograms with points, with the first `shots` clicks of each kind."""
        return [
            TrainingTomogram(name=f"tomogram {t}", volume=self.volumes[t], labelled=self._of(t, shots))
            for t in range(LEARNED)
        ]

    def _of(self, tomogram: int, shots: int) -> LabelledPoints:
        some = [(kind + 1, at) for kind, clicks in enumerate(self.points) for t, at in clicks[:shots] if t == tomogram]
        return LabelledPoints(
            points=VoxelPoints(np.array([at for _, at in some]).reshape(-1, 3)),
            classes=np.array([number for number, _ in some], dtype=np.int64),
            weights=np.ones(len(some)),
            origins=("click",) * len(some),
        )


def draw_data_set(templates: Path | None, seed: int, most: int, *, tuning: bool) -> DataSet:
    """Four of the held-out kinds (or of those to choose settings on), and up to `most` clicks of each."""
    rng = np.random.default_rng([seed, 7])
    shapes = shapes_of(templates, rng, tuning=tuning)
    shapes = [shape for shape in shapes if shape.radius < 13]
    if len(shapes) < KINDS:
        raise InputError(
            f"kinds: expected at least {KINDS}, found {len(shapes)}",
            hint="Give the folder of density maps: --templates",
        )
    shapes = [shapes[k] for k in rng.permutation(len(shapes))[:KINDS]]
    scene = Scene(shape_zyx=SHAPE, counts=(COUNT,) * KINDS, membranes=2, filaments=1, beads=2, gap=1)
    specimens = [build(scene, shapes, rng) for _ in range(LEARNED + TESTED)]
    defocus = float(rng.uniform(20000, 45000))
    volumes = [standardise(tomogram_under(one, REFERENCE, defocus, rng)) for one in specimens]
    truths = [[centres_inside(one, kind) for one in specimens] for kind in range(KINDS)]
    points = []
    for shape, truth in zip(shapes, truths, strict=True):
        margin = 0.5 * shape.radius
        inner = [
            (t, at)
            for t in range(LEARNED)
            for at in truth[t]
            if (at > margin).all() and (at < np.array(SHAPE) - margin).all()
        ]
        chosen = [inner[k] for k in rng.permutation(len(inner))[:most]]
        points.append([(t, at + rng.normal(size=3) * JITTER * shape.radius) for t, at in chosen])
    return DataSet(shapes=shapes, volumes=volumes, truths=truths, points=points)


def run_variant(data: DataSet, variant: str, shots: int, seed: int, base: SasiSettings) -> dict[str, Any]:
    """Scores in the tomograms without points, of each kind and their means; JSON types.

    `best` is the F1 at the best threshold on the scores, which nobody knows in practice.
    """
    over = VARIANTS[variant]
    if over is None:
        found = _search(data, CryoSAM.from_preset("embedded", device="cpu"), shots, tested=True)
        return _scored(data, [[one.picks for one in each] for each in found])
    settings = sasi_settings({**over, "training": {"seed": seed}}, base)
    tomograms = data.labelled(shots)
    if variant == "ladder":
        tomograms = _with_pseudo(data, tomograms, shots)
    trained = train(tomograms, data.classes, settings, torch.device("cpu"))
    model = SasiModel(
        network=trained.network,
        settings=settings,
        classes=tuple(data.classes),
        voxel_spacing=10.0,
        polarity="light",
    )
    sasi = Sasi(model, torch.device("cpu"))
    picks = []
    for volume in data.volumes[LEARNED:]:
        detected = sasi.detect(volume).particles
        picks.append([(centroids(each), np.array([one.score for one in each])) for each in detected.values()])
    return _scored(data, picks) | {
        "best_step": trained.best_step,
        "points": sum(len(one.labelled) for one in tomograms),
        "loss": trained.curve[-1]["supervised"],
    }


def _scored(data: DataSet, picks: Sequence[Sequence[tuple[VoxelPoints, FloatArray]]]) -> dict[str, Any]:
    """Picks of each kind in each searched tomogram against the truth: one-to-one, tolerance one radius."""
    grid = Grid(SHAPE, 10.0)
    kinds = {}
    for kind, shape in enumerate(data.shapes):
        runs = [
            evaluation.localization(
                grid.to_angstrom(picks[t][kind][0]),
                picks[t][kind][1],
                grid.to_angstrom(VoxelPoints(data.truths[kind][LEARNED + t])),
                10.0 * shape.radius,
            )
            for t in range(TESTED)
        ]
        whole = evaluation.pool(runs)
        best = evaluation.best_threshold(whole).f_beta if whole.predicted else 0.0
        kinds[shape.name] = {"f1": whole.f1, "best": best, "precision": whole.precision, "recall": whole.recall}
    means = {name: float(np.mean([one[name] for one in kinds.values()])) for name in next(iter(kinds.values()))}
    return means | {"kinds": kinds}


def _search(data: DataSet, model: CryoSAM, shots: int, *, tested: bool) -> list[list[Ranked]]:
    """Proposals of each kind from the same points, in the searched tomograms or in those with points."""
    seen = data.volumes if tested else data.volumes[:LEARNED]
    opened = [model.open(volume, None, 8.0, polarity="light", voxel_spacing=10.0) for volume in seen]
    wanted = slice(LEARNED if tested else 0, None)
    found: list[list[Ranked]] = [[] for _ in opened[wanted]]
    for kind, shape in enumerate(data.shapes):
        seeded = []
        for t in range(LEARNED):
            mine = np.array([at for where, at in data.points[kind][:shots] if where == t]).reshape(-1, 3)
            if len(mine):
                try:
                    seeded.append(model.seed(opened[t], VoxelPoints(mine), shape.radius))
                except SeedError:
                    continue
        ranked = [NOTHING for _ in found]
        if seeded:
            ranked = rank(model, opened, model.query(seeded), seeded, shape.radius, wanted)
        for each, one in zip(found, ranked, strict=True):
            each.append(one)
    return found


def _with_pseudo(data: DataSet, tomograms: Sequence[TrainingTomogram], shots: int) -> list[TrainingTomogram]:
    """CryoSAM's sure picks in the tomograms with points join these."""
    found = _search(data, CryoSAM.from_preset("embedded", device="cpu"), shots, tested=False)
    return [
        replace(one, labelled=with_pseudo(one.labelled, _sure(each), data.classes))
        for one, each in zip(tomograms, found, strict=True)
    ]


def _sure(found: Sequence[Ranked]) -> LabelledPoints:
    """Picks of all kinds in one tomogram that may become labels, best first."""
    points = np.concatenate([one.picks[0].zyx for one in found])
    precision = np.concatenate([one.expected_precision[: one.kept] for one in found])
    classes = np.repeat(np.arange(1, len(found) + 1), [one.kept for one in found])
    order = np.argsort(-precision, kind="stable")
    order = order[precision[order] >= MIN_PRECISION]
    return LabelledPoints(
        points=VoxelPoints(points[order]),
        classes=classes[order],
        weights=np.minimum(precision[order], MOST_PSEUDO),
        origins=("CryoSAM",) * len(order),
    )
