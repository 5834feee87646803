"""What an `Aligner` works on and what it finds: boxes of candidates, templates, and poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.types import FloatArray, Pose, VoxelPoints
from copick_cryosam.wedge import Wedge


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Boxes of one tomogram, ready to be correlated.

    Attributes
    ----------
    boxes : (N, E, E, E), mean 0 within the mask, masked; samples of `Geometry.pixel` voxels
    spectra : complex (N, K), whitened, 0 in the missing wedge
    amplitude : (K,), of the background, by shell
    wedge : of the tomogram
    """

    boxes: Tensor
    spectra: Tensor
    amplitude: Tensor
    wedge: Wedge

    def __len__(self) -> int:
        return len(self.boxes)

    def only(self, which: int | np.int64 | NDArray[np.int64]) -> Candidates:
        """Some of them."""
        some = np.atleast_1d(which)
        return Candidates(
            boxes=self.boxes[some], spectra=self.spectra[some], amplitude=self.amplitude, wedge=self.wedge
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Template:
    """What candidates are compared with.

    Attributes
    ----------
    spectrum : complex, (n, n, n), oversampled, centred, as far as it is compared
    wedge : of the one particle it is made of, the first one's where it is made of two; None where an average of more
        leaves none
    amplitude : (K,), by which candidates are whitened, too
    """

    spectrum: Tensor
    wedge: Wedge | None
    amplitude: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Turned:
    """A template at many rotations.

    Attributes
    ----------
    values : complex (R, K), whitened, 0 where it was not measured
    known : (R, K), how far it was; None: everywhere
    rotations : (R, 3, 3)
    squares : (R, K), of the values
    rounded : (R, 2 K), real and imaginary parts as poses are sought with
    lower : (R, 2 L), those of the lower frequencies
    """

    values: Tensor
    known: Tensor | None
    rotations: Tensor
    squares: Tensor
    rounded: Tensor
    lower: Tensor

    def power(self, spectra: Tensor, measured: Tensor) -> Tensor:
        """Of template and candidates where both were measured, the square of what a correlation is divided by; (R, N).

        Parameters
        ----------
        spectra : of the candidates, complex (N, K)
        measured : how far their tomogram's wedge leaves each frequency, (K,)
        """
        squares = spectra.abs().square()
        theirs = squares.sum(dim=1) if self.known is None else self.known @ squares.T
        return theirs * (self.squares @ measured)[:, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Halved:
    """An average of at least two particles, and those of every other one of them.

    Attributes
    ----------
    whole : of all
    halves : of the particles of even and of odd index
    """

    whole: Template
    halves: tuple[Template, Template]


@dataclass(frozen=True, eq=False, kw_only=True)
class Aligned:
    """How candidates fit a template.

    Attributes
    ----------
    score : normalised correlation at the best orientation and shift, shape (N,), at most 1
    rotations : R, template to candidate, shape (N, 3, 3) on (z, y, x) columns
    shifts : from the candidate's point to where the template fits best, voxels, shape (N, 3)
    """

    score: FloatArray
    rotations: FloatArray
    shifts: FloatArray

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def none(cls, count: int) -> Aligned:
        """Of `count` candidates that fit not at all, a score of -1."""
        rotations = np.broadcast_to(np.eye(3), (count, 3, 3))
        return cls(score=np.full(count, -1.0), rotations=rotations, shifts=np.zeros((count, 3)))

    @classmethod
    def joined(cls, parts: Sequence[Aligned]) -> Aligned:
        """One after the other."""
        return cls(
            score=np.concatenate([one.score for one in parts]),
            rotations=np.concatenate([one.rotations for one in parts]),
            shifts=np.concatenate([one.shifts for one in parts]),
        )

    def only(self, which: NDArray[np.int64]) -> Aligned:
        """Some of them."""
        return Aligned(score=self.score[which], rotations=self.rotations[which], shifts=self.shifts[which])

    def put(self, which: np.int64 | NDArray[np.int64], found: Aligned) -> Aligned:
        """All of them, some replaced."""
        score, rotations, shifts = self.score.copy(), self.rotations.copy(), self.shifts.copy()
        some = np.atleast_1d(which)
        score[some], rotations[some], shifts[some] = found.score, found.rotations, found.shifts
        return Aligned(score=score, rotations=rotations, shifts=shifts)

    def poses(self, points: VoxelPoints, order: NDArray[np.int64]) -> list[Pose]:
        """Of some candidates; `points` are theirs, in the same order."""
        centres = points.zyx[: len(order)] + self.shifts[order]
        return [
            Pose(rotation=self.rotations[i], centre_zyx=(centre[0], centre[1], centre[2]))
            for i, centre in zip(order, centres, strict=True)
        ]


Member = tuple[Candidates, int, NDArray[np.float64], NDArray[np.float64]]
"""A particle as it is averaged: candidates, index, rotation and shift in voxels."""


def posed(boxes: Candidates, which: NDArray[np.int64], aligned: Aligned) -> list[Member]:
    """Some candidates of one tomogram as they are averaged, where all of them are aligned."""
    return [(boxes, int(i), aligned.rotations[i], aligned.shifts[i]) for i in which]
