"""The diagnosis of the seeds in words and in records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copick_cryosam.diagnosis import SeedDiagnosis

__all__ = ["recorded", "remarks"]

_ADVICE = "Check it, or leave it out"


def remarks(diagnosis: Sequence[SeedDiagnosis], voxel_spacing: float) -> list[str]:
    """One line on every suspicious seed: where it is (Å: x, y, z), how it agrees, and what to do.

    Of two seeds that disagree neither is known to be the wrong one: they share a line.
    """
    masked = [one for one in diagnosis if one.agreement is not None]
    pair = len(masked) == 2 and all(one.suspicious for one in masked)
    lines = []
    for one in diagnosis:
        if not one.suspicious or (pair and one is masked[1]):
            continue
        if pair and one is masked[0]:
            first, second = (_name(each, voxel_spacing) for each in masked)
            lines.append(
                f"{first} and {second} do not agree: agreement {one.agreement:.2f}. Check both, or add a third"
            )
        elif one.verdict == "no mask":
            lines.append(f"{_name(one, voxel_spacing)} could not be segmented and is not used{_found(one)}. {_ADVICE}")
        else:
            levels = f"agreement {one.agreement:.2f}, theirs {one.expected:.2f}, random places {one.random:.2f}"
            others = f"does not agree with the other {len(masked) - 1}"
            lines.append(f"{_name(one, voxel_spacing)} {others}: {levels}{_found(one)}. {_ADVICE}")
    return lines


def recorded(diagnosis: Sequence[SeedDiagnosis], voxel_spacing: float) -> dict[str, list[dict[str, Any]]]:
    """The diagnosis by runs, as JSON types; positions in Å, x, y, z."""
    record: dict[str, list[dict[str, Any]]] = {}
    for one in diagnosis:
        values = {name: getattr(one, name) for name in ("agreement", "expected", "random", "nearness")}
        record.setdefault(one.run, []).append(
            {
                "position": [round(value, 3) for value in _angstrom(one, voxel_spacing)],
                "verdict": one.verdict,
                "found": one.found,
                **{name: None if value is None else round(value, 4) for name, value in values.items()},
            }
        )
    return record


def _name(one: SeedDiagnosis, voxel_spacing: float) -> str:
    x, y, z = _angstrom(one, voxel_spacing)
    return f"seed {one.index + 1} of run {one.run} at ({x:.0f}, {y:.0f}, {z:.0f}) Å"


def _found(one: SeedDiagnosis) -> str:
    if one.found is None:
        return ""
    what = "something" if one.found else "nothing"
    return f"; the others find {what} like them within one radius of it"


def _angstrom(one: SeedDiagnosis, voxel_spacing: float) -> tuple[float, float, float]:
    z, y, x = (value * voxel_spacing for value in one.position_zyx)
    return x, y, z
