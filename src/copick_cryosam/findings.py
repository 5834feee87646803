"""What the stages of the pipeline make of a tomogram, and hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.averaging import Particles
from copick_cryosam.calibration import Calibration
from copick_cryosam.classification import Shared
from copick_cryosam.diagnosis import SeedEvidence, Surroundings
from copick_cryosam.features import Features
from copick_cryosam.second_look import Look, SeedLook
from copick_cryosam.types import Instance, Pose, Proposals, VoxelPoints
from copick_cryosam.wedge import DEFAULT_WEDGE, Wedge


@dataclass(frozen=True, eq=False, kw_only=True)
class Tomogram:
    """One tomogram as the models see it.

    Attributes
    ----------
    volume : float32, shape (Z, Y, X), standardised, particles bright
    polarity : how particles looked before, dark or light
    features : of the encoder, whitened for matching
    voxel_spacing : Å, None where unknown
    wedge : what its tilt series measured; the default where there is no second look
    """

    volume: NDArray[np.float32]
    polarity: str
    features: Features
    voxel_spacing: float | None
    wedge: Wedge = DEFAULT_WEDGE


@dataclass(frozen=True, eq=False, kw_only=True)
class Seeded:
    """The seeds of one tomogram, segmented and pooled.

    Attributes
    ----------
    instances : one for each seed
    features : mean feature over the mask of each seed that has one; shape (N, C), N >= 1
    scores : how well the seeds match a query of their own, for calibration; shape (M,), M >= 1
    surroundings : features around the seeds and elsewhere, for their diagnosis; None where none is wanted
    look : the seeds with a mask as the second look sees them; None where there is no second look
    """

    instances: list[Instance]
    features: NDArray[np.float32]
    scores: NDArray[np.float64]
    surroundings: Surroundings | None = None
    look: SeedLook | None = None

    @property
    def weighted(self) -> list[tuple[NDArray[np.float32], int]]:
        """Each seed's feature and its weight in eq. 4, the number of voxels of its mask."""
        return list(zip(self.features, [one.size for one in self.instances if one.size], strict=True))

    def evidence(self, run: str) -> SeedEvidence:
        """What a diagnosis of the seeds needs."""
        if self.surroundings is None:
            raise ValueError(f"seeds of {run}: expected features of their surroundings, found none")
        return SeedEvidence(
            run=run,
            points=VoxelPoints(np.array([one.prompt_zyx for one in self.instances])),
            masked=np.array([one.size > 0 for one in self.instances]),
            features=self.features,
            surroundings=self.surroundings,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Shortlist:
    """The candidates of one tomogram, each looked at but not yet ranked; holds neither the tomogram nor its features.

    Attributes
    ----------
    proposals : best first by similarity
    context : the candidates among which each is seen, of `second_look.choose`; empty without a second look
    seed_scores : of all seeds against their own queries
    look : the second look; None without one
    wedge : of the tomogram
    seconds : that it took
    shared : how the candidates fare among those of the tomograms that keep each other company; None where that is
        not known yet
    """

    proposals: Proposals
    context: NDArray[np.int64]
    seed_scores: NDArray[np.float64]
    look: Look | None
    wedge: Wedge
    seconds: float
    shared: Shared | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked:
    """Proposals of one tomogram in their final order, before any is segmented.

    Attributes
    ----------
    proposals : best first; the score is the expected precision where there was a second look
    calibration : expected precision of each, and where to stop
    poses : of each proposal, from the second look; empty without one
    look, order : the second look, and which of its candidates each proposal is; None and empty without one
    """

    proposals: Proposals
    calibration: Calibration
    poses: list[Pose]
    look: Look | None = None
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What a search of one tomogram gave.

    Attributes
    ----------
    instances : the picks, best first
    proposals : every point that was proposed, best first, with its score
    expected_precision : of each proposal, shape (N,)
    threshold : the score under which proposals were left out
    decodes : prompts decoded, each for a plane or a slab of planes
    seconds : wall-clock time by stage
    particles : boxes and poses of the surest picks, for an average; None where none was asked for
    wedge : that the second look respected; None without one
    """

    instances: list[Instance]
    proposals: Proposals
    expected_precision: NDArray[np.float64]
    threshold: float
    decodes: int
    seconds: dict[str, float] = field(default_factory=dict)
    particles: Particles | None = None
    wedge: Wedge | None = None
