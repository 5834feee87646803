"""Proposals with expected precision as `CryoSAM.search` has them before it segments any; seeds segmented once.

The whole pipeline also segments what is kept, drops wrong sizes and duplicates, and moves picks to the centroids of
their masks. All that measuring asks of the pipeline's inside passes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from copick_cryosam.calibration import calibrate
from copick_cryosam.instances import from_masks
from copick_cryosam.matching import Query, propose, scores_near
from copick_cryosam.pipeline import CryoSAM, Seeded, Tomogram
from copick_cryosam.segmenters.cross_plane import segment
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


def segment_seeds(model: CryoSAM, tomogram: Tomogram, seeds: VoxelPoints, radius_vox: float) -> list[Instance]:
    """The seeds' masks as `CryoSAM.seed` makes them; what one seed gives does not depend on the others."""
    if len(seeds) == 0:
        return []
    volume = torch.from_numpy(tomogram.volume).to(model.device)
    masks = segment(volume, seeds, radius_vox, model.segmenter, model.settings.segmenter, None, sure=True)
    return from_masks(masks, np.ones(len(masks)))


def gather(
    model: CryoSAM, tomogram: Tomogram, instances: Sequence[Instance], seeds: VoxelPoints, radius_vox: float
) -> Seeded | None:
    """What `model.seed(tomogram, seeds, radius_vox)` gives, from masks that are there; None where it raises SeedError.

    Parameters
    ----------
    instances : one for each of `seeds`, of `segment_seeds`
    """
    solid = [one for one in instances if one.size]
    if not solid:
        return None
    features = np.stack([tomogram.features.pool([one]) for one in solid])
    seeded = Seeded(instances=list(instances), features=features, scores=np.zeros(0))
    own = propose(tomogram.features, model.query([seeded]), radius_vox, model.settings.matching)
    return replace(seeded, scores=scores_near(own, seeds, radius_vox))


def rank(model: CryoSAM, tomogram: Tomogram, query: Query, seeded: Sequence[Seeded], radius_vox: float) -> Ranked:
    """Propose and calibrate in one tomogram, as `CryoSAM.search` does."""
    settings = model.settings
    proposals = propose(tomogram.features, query, radius_vox, settings.matching)
    seed_scores = np.concatenate([one.scores for one in seeded])
    calibration = calibrate(proposals, seed_scores, settings.instances.min_precision)
    return Ranked(
        points=proposals.points,
        score=proposals.score,
        expected_precision=calibration.expected_precision,
        kept=min(calibration.kept, settings.matching.max_proposals),
    )
