"""One search of a simulated tomogram as the ranking learns from it: evidence of its candidates, with the truth.

What the second net sees depends on what the first one says (`evidence.second_evidence`), and what the third sees on
the second, so the ingredients are kept: a net that learned from the search itself is surer of it than one ever is of a
user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.class_evidence import third_evidence
from copick_cryosam.evidence import second_evidence
from copick_cryosam.types import FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """One kind of particle sought in one tomogram.

    Attributes
    ----------
    sample : the file that the search was kept in: one sample of the pool
    first : of `evidence.first_evidence`, shape (N, F)
    correlation : rotational correlation with the average, shape (N,)
    fits : of `classification.Shared`, shape (N, 1 + GROUPS)
    members : particles in the class of the seeds
    parts, seed_parts : features of the candidates, shape (N, P), and of the seeds, shape (P,)
    counts : how often each candidate counts among all, shape (N,); see `second_look.choose`
    averaged : particles in the average
    seeds : how many the search started from
    truth : 1 for a particle, 0 for anything else, shape (N,)
    lesson : where something is learned; the seeds themselves are no lesson, shape (N,)
    """

    sample: str
    first: FloatArray
    correlation: FloatArray
    fits: FloatArray
    parts: NDArray[np.float32]
    seed_parts: NDArray[np.float32]
    counts: NDArray[np.int64]
    averaged: int
    members: int
    seeds: int
    truth: FloatArray
    lesson: NDArray[np.bool_]

    def second(self, sure: FloatArray) -> FloatArray:
        """Evidence of the second net, shape (N, F + 17), where the first one says `sure`, shape (N,)."""
        context = np.repeat(np.arange(len(self.counts)), self.counts)
        parts, seed = self.parts, self.seed_parts
        return second_evidence(self.first, self.correlation, parts, seed, sure, self.averaged, context)

    def third(self, probable: FloatArray) -> FloatArray:
        """Evidence of the third net, shape (N, 22), where the second one says `probable`, shape (N,)."""
        context = np.repeat(np.arange(len(self.counts)), self.counts)
        return third_evidence(self.first, probable, self.fits.T, self.members, context)


_ROWS = ("first", "correlation", "fits", "parts", "counts", "truth", "lesson")
_NUMBERS = ("seed_parts", "averaged", "members", "seeds")


def save_searches(path: Path, searches: Sequence[Search]) -> None:
    """All searches of one sample in a file; whole or not at all."""
    arrays = {"length": np.array([len(one.truth) for one in searches], dtype=np.int64)}
    if searches:
        arrays |= {name: np.concatenate([getattr(one, name) for one in searches]) for name in _ROWS}
        arrays |= {name: np.stack([getattr(one, name) for one in searches]) for name in _NUMBERS}
        arrays |= {name: arrays[name].astype(np.float16) for name in ("parts", "seed_parts")}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read_searches(folder: Path) -> list[Search]:
    """Everything that was kept in a folder."""
    assert {one.name for one in fields(Search)} == {"sample", *_ROWS, *_NUMBERS}
    found = []
    for path in sorted(folder.glob("searches-*.npz")):
        with np.load(path) as data:
            if len(data["length"]) == 0:
                continue
            ends = np.cumsum(data["length"])[:-1]
            rows = {name: np.split(data[name], ends) for name in _ROWS}
            numbers = {name: data[name] for name in _NUMBERS}
        for i in range(len(ends) + 1):
            of_this = {name: part[i] for name, part in rows.items()}
            of_this |= {"parts": of_this["parts"].astype(np.float32)}
            found.append(
                Search(
                    sample=path.stem,
                    **of_this,
                    seed_parts=numbers["seed_parts"][i].astype(np.float32),
                    averaged=int(numbers["averaged"][i]),
                    members=int(numbers["members"][i]),
                    seeds=int(numbers["seeds"][i]),
                )
            )
    return found
