"""Commands for the `copick` command line, thin: they parse, call one function and print."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The `copick-cryosam` command: the same as `copick cryosam`."""
    from copick_cryosam.cli.group import cryosam

    cryosam(prog_name="copick-cryosam")
