"""Parts of a README or model card that a measurement writes: what stands between two marks."""

from __future__ import annotations

from pathlib import Path

from copick_cryosam.errors import InputError
from copick_cryosam.pretraining.figures import write

Marks = tuple[str, str]
"""The lines before and after the part."""


def around(file: Path, marks: Marks) -> tuple[str, str]:
    """What a file holds before and after its marks.

    Raises
    ------
    InputError
        The file does not hold both marks, in order.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise InputError(
            f"{file}: expected the lines {marks[0]} and {marks[1]}, found not both", hint="Add them where it shall go"
        )
    return before, after


def replace_part(file: Path, marks: Marks, part: str) -> None:
    """Put a new part between the marks, the file whole or not at all; errors are those of `around`."""
    before, after = around(file, marks)
    write(file, f"{before}{marks[0]}\n{part}\n{marks[1]}{after}")
