"""Candidates that compete for classes, of one tomogram or of several together.

A tomogram with three particles of a kind has nothing to average; ten such tomograms have thirty. So candidates of other
tomograms take part, each turned and judged with the missing wedge and the background of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.aligned import Aligned, Candidates, Member, Turned
from copick_cryosam.alignment import Aligner
from copick_cryosam.types import FloatArray

CENTRAL = 0.2
"""Probability of being the centre of anything from which a candidate of a tomogram is shared out,"""
SURE = 0.05
"""or of being a particle like the seeds. What is neither would only blur the averages."""
LEAST, LIKELY = 20, 140
"""At least and at most so many that are most likely centres,"""
SUREST = 40
"""and at most so many that are most likely particles like the seeds."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Contenders:
    """N candidates of one tomogram, and what is known of them before they compete.

    Attributes
    ----------
    boxes : of the candidates
    parts : features of middle, body and rim, shape (N, P)
    centre : probability of being the centre of anything, shape (N,)
    sure : of being like the seeds, shape (N,)
    members : indices of those that join the seeds at first
    aligned : all to the seeds
    """

    boxes: Candidates
    parts: NDArray[np.float32]
    centre: FloatArray
    sure: FloatArray
    members: NDArray[np.int64]
    aligned: Aligned

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def likely(self) -> NDArray[np.int64]:
        """Those that are shared out, ascending; members are among them."""
        central = min(LIKELY, max(LEAST, int((self.centre >= CENTRAL).sum())))
        sure = min(SUREST, int((self.sure >= SURE).sum()))
        best = np.argsort(-self.centre, kind="stable")[:central], np.argsort(-self.sure, kind="stable")[:sure]
        return np.union1d(np.union1d(*best), self.members).astype(np.int64)

    def only_likely(self) -> Contenders:
        """Those that take part where another tomogram is searched."""
        some = self.likely
        return Contenders(
            boxes=self.boxes.only(some),
            parts=self.parts[some],
            centre=self.centre[some],
            sure=self.sure[some],
            members=np.flatnonzero(np.isin(some, self.members)),
            aligned=self.aligned.only(some),
        )


class Crowd:
    """Contenders of several tomograms; indices count through all of them, tomogram by tomogram.

    Parameters
    ----------
    tomograms : at least one
    searched : how many of them are searched, the first ones; the others' candidates take part in the averages only
    """

    def __init__(self, tomograms: Sequence[Contenders], searched: int = 1) -> None:
        self.tomograms = tuple(tomograms)
        self._starts = np.cumsum([0, *(len(one) for one in self.tomograms)])
        self.parts = np.concatenate([one.parts for one in self.tomograms])
        self.sure = np.concatenate([one.sure for one in self.tomograms])
        self.aligned = Aligned.joined([one.aligned for one in self.tomograms])
        self.members = self._counted_on([one.members for one in self.tomograms])
        self.likely = self._counted_on([one.likely for one in self.tomograms])
        self.searched = np.arange(self._starts[searched])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, which: int) -> tuple[Candidates, int]:
        """One of them as its tomogram knows it."""
        tomogram = int(np.searchsorted(self._starts, which, side="right")) - 1
        return self.tomograms[tomogram].boxes, which - int(self._starts[tomogram])

    def posed(self, which: NDArray[np.int64], aligned: Aligned) -> list[Member]:
        """Some of them as `Aligner.averaged` takes them; poses by index of all."""
        return [(*self.place(int(i)), aligned.rotations[i], aligned.shifts[i]) for i in which]

    def align(self, aligner: Aligner, turned: Turned, which: NDArray[np.int64]) -> Aligned:
        """Some of them, in their order, to a template at its rotations."""
        found = Aligned.none(len(which))
        for one, start, end in zip(self.tomograms, self._starts, self._starts[1:], strict=False):
            here = np.flatnonzero((which >= start) & (which < end))
            found = found.put(here, aligner.align_turned(turned, one.boxes.only(which[here] - start)))
        return found

    def _counted_on(self, indices: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([some + start for some, start in zip(indices, self._starts, strict=False)]).astype(int)
