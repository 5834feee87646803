"""Seed diagnosis: leave one seed out, look for it with the others, and name it if it does not agree with them.

A seed agrees as far as its feature resembles the mean of the other seeds'. Two levels make a number of that: how
the others agree among themselves in the same way (1), and how random places of the tomograms resemble them (0).
A seed nearer to the random places than to the other seeds is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from copick_cryosam.features import Features
from copick_cryosam.fisher import fisher_z
from copick_cryosam.types import FloatArray, Instance, VoxelPoints
from copick_cryosam.unit_vectors import to_unit

__all__ = ["SeedDiagnosis", "SeedEvidence", "Surroundings", "Verdict", "diagnose", "surroundings_of"]

Verdict = Literal["agrees", "disagrees", "no mask", "alone"]

# The first two numbers were chosen on simulated tomograms of kinds that training saw (pretraining.measure_diagnosis).
NEARNESS = 0.45
"""A seed under this is named: 0 is as near to the others as random places are, 1 as they are to each other."""
RANDOM_LEVEL = 0.75
"""The quantile of the random places that counts as 0; among them are particles of the same and of other kinds."""
TYPICAL_PAIR = 1.8
"""How well two good seeds agree, Fisher z: for a pair, of which no third can tell how well it should."""
_LEAST_SPAN = 0.3
"""Least distance of the two levels, Fisher z: seeds that agree no better than chance must not set the scale."""
_SAME = 0.99
"""Cosine from which a seed agrees, whatever the tomogram is like."""
_PLACES = 48
_BALL = 0.5
"""Radius of the balls over which places without a mask are averaged, in object radii."""
_SIDES = np.concatenate([np.eye(3), -np.eye(3)])
_STEPS = np.concatenate([np.zeros((1, 3)), 0.5 * _SIDES, _SIDES])


@dataclass(frozen=True, eq=False, kw_only=True)
class Surroundings:
    """Features of places of one tomogram that no mask chose.

    Attributes
    ----------
    around : at and around every seed, up to one radius off; shape (S, P, C)
    elsewhere : at random places; shape (M, C)
    """

    around: NDArray[np.float32]
    elsewhere: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedEvidence:
    """The seeds of one run.

    Attributes
    ----------
    points : S of them, voxels z, y, x
    masked : which have a mask, shape (S,)
    features : mean feature over the mask of those, shape (N, C)
    """

    run: str
    points: VoxelPoints
    masked: NDArray[np.bool_]
    features: NDArray[np.float32]
    surroundings: Surroundings


@dataclass(frozen=True, kw_only=True)
class SeedDiagnosis:
    """What the other seeds say of one.

    Attributes
    ----------
    index : in its run, from 0, in the order given
    position_zyx : voxels
    verdict : agrees; disagrees; no mask, so that it is not part of the query; alone, the only seed with a mask. Of
        two seeds that disagree neither is known to be the wrong one.
    agreement : cosine with the mean feature of the other seeds; None without a mask or without others
    expected : how well the others agree among themselves in the same way
    random : how well random places agree with the others
    nearness : where the agreement lies from `random` (0) to `expected` (1)
    found : whether the others find something like them within one radius of it; None where there are no others
    """

    run: str
    index: int
    position_zyx: tuple[float, float, float]
    verdict: Verdict
    agreement: float | None = None
    expected: float | None = None
    random: float | None = None
    nearness: float | None = None
    found: bool | None = None

    @property
    def suspicious(self) -> bool:
        """Whether somebody should look at this seed."""
        return self.verdict in ("disagrees", "no mask")


def surroundings_of(
    features: Features, points: VoxelPoints, radius_vox: float, shape_zyx: tuple[int, ...]
) -> Surroundings:
    """Features around the seeds, and at random places at least two radii from them where there are such.

    The places are the same for every call on a tomogram of this shape with these seeds.
    """
    last = np.array(shape_zyx) - 1

    def at(place: FloatArray) -> NDArray[np.float32]:
        return features.pool([_ball(np.clip(place, 0, last), max(1.0, _BALL * radius_vox), shape_zyx)])

    around = [np.stack([at(point + radius_vox * step) for step in _STEPS]) for point in points.zyx]
    drawn = np.random.default_rng(0).uniform(0, 1, size=(4 * _PLACES, 3)) * last
    far = np.asarray(cKDTree(points.zyx).query(drawn)[0]) >= 2 * radius_vox
    places = (drawn[far] if far.any() else drawn)[:_PLACES]
    return Surroundings(around=np.stack(around), elsewhere=np.stack([at(place) for place in places]))


def diagnose(evidence: Sequence[SeedEvidence], *, threshold: float = NEARNESS) -> list[SeedDiagnosis]:
    """What the seeds of all runs say of each other, in the order of the runs and of their seeds.

    Every seed counts alike, however large its mask: a wrong one must not outvote the others by its size. Worst
    first: of the seeds that could be named only the one that agrees least is, and the rest are judged again
    without it, because among few seeds a wrong one spoils the mean that the right ones are held against.
    """
    if not evidence:
        return []
    unit = to_unit(np.concatenate([one.features for one in evidence]))
    around = to_unit(np.concatenate([one.surroundings.around for one in evidence]))
    elsewhere = to_unit(np.concatenate([one.surroundings.elsewhere for one in evidence]))
    seeds = [(one.run, index) for one in evidence for index in range(len(one.points))]
    masked = np.flatnonzero(np.concatenate([one.masked for one in evidence]))
    judged: dict[int, dict[str, Any]] = {}
    trusted = list(range(len(unit)))
    while True:
        for member in trusted:
            others = unit[[other for other in trusted if other != member]]
            judged[member] = _judge(unit[member], others, around[masked[member]], elsewhere, threshold)
        named = [member for member in trusted if judged[member]["verdict"] == "disagrees"]
        if not named or len(trusted) <= 2:
            break
        trusted.remove(min(named, key=lambda member: float(judged[member]["agreement"])))
    of_seed = {int(place): judged[member] for member, place in enumerate(masked)}
    points = np.concatenate([one.points.zyx for one in evidence])
    return [
        SeedDiagnosis(
            run=run,
            index=index,
            position_zyx=(float(points[i, 0]), float(points[i, 1]), float(points[i, 2])),
            **(of_seed.get(i) or _judge(None, unit[trusted], around[i], elsewhere, threshold)),
        )
        for i, (run, index) in enumerate(seeds)
    ]


def _judge(
    own: FloatArray | None, others: FloatArray, around: FloatArray, elsewhere: FloatArray, threshold: float
) -> dict[str, Any]:
    """The fields of a diagnosis from unit features: of the seed (C,), the others, its surroundings, random places."""
    if len(others) == 0:
        return {"verdict": "alone"}
    query = to_unit(others.sum(axis=0))
    random = float(np.quantile(fisher_z(elsewhere @ query), RANDOM_LEVEL))
    expected = _among_themselves(others)
    span = max(expected - random, _LEAST_SPAN)
    near = bool((fisher_z(around @ query).max() - random) / span >= threshold)
    if own is None:
        return {"verdict": "no mask", "found": near}
    agreement = float(fisher_z(own @ query))
    nearness = (agreement - random) / span
    return {
        "verdict": "agrees" if nearness >= threshold or np.tanh(agreement) >= _SAME else "disagrees",
        "agreement": float(np.tanh(agreement)),
        "expected": float(np.tanh(expected)),
        "random": float(np.tanh(random)),
        "nearness": float(nearness),
        "found": near,
    }


def _among_themselves(unit: FloatArray) -> float:
    """Median agreement of each feature with the mean of the rest, Fisher z; shape (N, C)."""
    if len(unit) == 1:
        return TYPICAL_PAIR
    rest = to_unit(unit.sum(axis=0) - unit)
    return float(np.median(fisher_z((unit * rest).sum(axis=1))))


def _ball(centre: FloatArray, radius: float, shape_zyx: tuple[int, ...]) -> Instance:
    """A ball as an instance, cut off at the tomogram's borders; it holds at least the voxel at its centre."""
    middle = np.floor(centre + 0.5).astype(int)
    reach = int(np.ceil(radius))
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, shape_zyx)
    z, y, x = (np.arange(a, b) - c for a, b, c in zip(low, high, middle, strict=True))
    return Instance(
        mask=z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2,
        origin_zyx=(int(low[0]), int(low[1]), int(low[2])),
        prompt_zyx=(float(centre[0]), float(centre[1]), float(centre[2])),
        similarity=1.0,
        confidence=1.0,
        score=1.0,
    )
