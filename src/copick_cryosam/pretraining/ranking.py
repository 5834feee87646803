"""Proposals with expected precision as `CryoSAM.search` has them before it segments any.

The whole pipeline also segments what is kept, drops wrong sizes and duplicates, and moves picks to the centroids of
their masks. All that measuring asks of the pipeline's inside passes through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from copick_cryosam.errors import SeedError
from copick_cryosam.findings import Found, Seeded, Shortlist, Tomogram
from copick_cryosam.matching import Query
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.types import FloatArray, Instance, VoxelPoints


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked:
    """The proposals of one tomogram, best first.

    Attributes
    ----------
    points : voxels
    score, expected_precision : shape (N,); the latter is NaN where there were too few to calibrate
    kept : how many of the best the program keeps
    """

    points: VoxelPoints
    score: FloatArray
    expected_precision: FloatArray
    kept: int

    @property
    def picks(self) -> tuple[VoxelPoints, FloatArray]:
        """What the program keeps: where, and the scores."""
        return VoxelPoints(self.points.zyx[: self.kept]), self.score[: self.kept]


NOTHING = Ranked(points=VoxelPoints(np.zeros(0)), score=np.zeros(0), expected_precision=np.zeros(0), kept=0)
"""Where no seed has a mask."""


def segment_seeds(model: CryoSAM, tomogram: Tomogram, seeds: VoxelPoints, radius_vox: float) -> list[Instance]:
    """The seeds' masks; what one seed gives does not depend on the others, so that any of them can be used together."""
    return [] if len(seeds) == 0 else model.segment_seeds(tomogram, seeds, radius_vox)


def gather(
    model: CryoSAM, tomogram: Tomogram, instances: Sequence[Instance], seeds: VoxelPoints, radius_vox: float
) -> Seeded | None:
    """What `model.seed(tomogram, seeds, radius_vox)` gives, from masks that are there; None where it raises SeedError.

    Parameters
    ----------
    instances : one for each of `seeds`, of `segment_seeds`
    """
    try:
        return model.seed(tomogram, seeds, radius_vox, instances=instances)
    except SeedError:
        return None


def shortlists(
    model: CryoSAM, tomograms: Sequence[Tomogram], query: Query, seeded: Sequence[Seeded], radius_vox: float
) -> list[tuple[Shortlist, list[Shortlist]]]:
    """Of every tomogram, with those that keep it company, as in a job: the first few keep it to all."""
    made = [model.shortlist(one, query, seeded, radius_vox) for one in tomograms]
    few = model.settings.alignment.company + 1
    together = model.share(made[:few], radius_vox) if few > 1 and len(made) > 1 else made[:few]
    return [*((one, []) for one in together), *((one, together) for one in made[few:])]


def search(
    model: CryoSAM, tomograms: Sequence[Tomogram], query: Query, seeded: Sequence[Seeded], radius_vox: float
) -> Iterator[Found]:
    """What users get of tomograms that are searched together, one after the other."""
    together = shortlists(model, tomograms, query, seeded, radius_vox)
    for tomogram, (shortlist, company) in zip(tomograms, together, strict=True):
        yield model.finish(tomogram.volume, shortlist, seeded, radius_vox, company=company)


def rank(
    model: CryoSAM,
    tomograms: Sequence[Tomogram],
    query: Query,
    seeded: Sequence[Seeded],
    radius_vox: float,
    wanted: slice = slice(None),
) -> list[Ranked]:
    """Propose, look again and calibrate in tomograms that are searched together; `wanted` ones are given."""
    found = []
    for shortlist, company in shortlists(model, tomograms, query, seeded, radius_vox)[wanted]:
        ranked = model.rank(shortlist, radius_vox, company=company)
        found.append(
            Ranked(
                points=ranked.proposals.points,
                score=ranked.proposals.score,
                expected_precision=ranked.calibration.expected_precision,
                kept=min(ranked.calibration.kept, model.settings.matching.max_proposals),
            )
        )
    return found
