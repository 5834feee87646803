"""`copick cryosam models`: every model that is known, where it is and where to get it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from copick_cryosam.cli.errors import one_line_errors

__all__ = ["models"]

_EMBEDDED = {"embednet": "encoder", "promptnet": "segmenter"}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A model as a line of the table.

    Attributes
    ----------
    source : web address or repository
    sha256 : 64 hexadecimal digits; None: only the commit is pinned
    wrong : it is here, but not as it should be
    """

    name: str
    role: str
    size: float
    licence: str
    found: str
    source: str
    sha256: str | None = None
    wrong: bool = False


@click.command(name="models", short_help="List models: size, licence, where they are and where to get them.")
@click.option("--check", is_flag=True, help="Compute the SHA-256 of the checkpoints found and compare.")
@one_line_errors
def models(check: bool) -> None:
    """List models: size, licence, where they are and where to get them.

    Checkpoints are looked for in the folders that the environment variable CRYOSAM_CHECKPOINTS names, and
    transformers in the cache of Hugging Face, too. Exit code 1 with --check if a checkpoint is not the official one.

    \b
    Examples:
        # What there is, and what is here
        copick cryosam models

    \b
        # Is the download whole?
        CRYOSAM_CHECKPOINTS=~/checkpoints copick cryosam models --check

    \b
    See Also:
        copick inference cryosam: picks particles from one seed
        copick cryosam info: versions, devices and models
    """
    from copick_cryosam.foundation.catalogue import VARIABLE, checkpoint_folders

    rows = [*_embedded(), *_sams(check), *_sam2s(check), *_transformers()]
    cells = [(row.name, row.role, _size(row.size), row.licence, row.found) for row in rows]
    _print_table("Models", [("name", "role", "size", "licence", "found here"), *cells])
    _print_table("What a preset loads", _needed())
    _print_table("Where from", [(row.name, row.source) for row in rows])
    _print_table("SHA-256", [(row.name, row.sha256) for row in rows if row.sha256 is not None])
    named = [str(folder) if folder.is_dir() else f"{folder} (no such folder)" for folder in checkpoint_folders()]
    folders = ", ".join(named) or "not set"
    click.echo(
        f"{VARIABLE}: {folders}\n\n"
        "How to get one\n"
        "  SAM           mkdir -p ~/checkpoints\n"
        f"                export {VARIABLE}=~/checkpoints\n"
        "                curl -L --output-dir ~/checkpoints -O ADDRESS\n"
        "                with the address above; or give the file with --sam-checkpoint\n"
        "  SAM 2         as transformers, below; chosen in a --settings file:\n"
        "                segmenter: {name: sam2, checkpoint: NAME}\n"
        "  transformers  pip install 'copick-cryosam[foundation]'\n"
        "                They are downloaded when first used. Where there is no network:\n"
        "                hf download REPOSITORY --revision COMMIT \\\n"
        "                  --local-dir ~/checkpoints/NAME\n"
        "  DINOv3        accept its licence on the repository's page, then hf auth login\n"
        "  (pickled)     refused, as a pickle can run code; where you trust it, save it\n"
        "                again with transformers:\n"
        "                AutoModel.from_pretrained(REPOSITORY).save_pretrained(FOLDER)"
    )
    if check and any(row.wrong for row in rows):
        raise click.exceptions.Exit(1)


def _needed() -> list[tuple[str, str, str]]:
    """Each preset that users choose, its encoder and its segmenter."""
    from copick_cryosam.config import PRESETS

    def segmenter(name: str, model: str | None) -> str:
        return (f"SAM {model}" if model else "the largest SAM found") if name == "sam" else name

    return [
        (f"--preset {name}", settings.encoder.name, segmenter(settings.segmenter.name, settings.segmenter.model))
        for name, settings in PRESETS.items()
        if name != "fake"
    ]


def _embedded() -> Iterable[_Row]:
    from copick_cryosam.errors import NotFoundError
    from copick_cryosam.weights import weight_bytes, weight_hash

    for name, role in _EMBEDDED.items():
        try:
            size, digest, found = len(weight_bytes(name)), weight_hash(name), "in the package"
        except NotFoundError:
            size, digest, found = 0, None, "missing: install copick-cryosam again from its wheel"
        yield _Row(
            name=name,
            role=role,
            size=size,
            licence="MIT",
            found=found,
            source="copick-cryosam itself",
            sha256=digest,
            wrong=digest is None,
        )


def _compared(shown: Path, weights: Path, expected: str) -> tuple[str, bool]:
    """Where a model was found, with what its SHA-256 says, and whether that is wrong."""
    from copick_cryosam.foundation.checkpoints import file_sha256

    digest = file_sha256(weights)
    if digest != expected:
        return f"{shown}: another SHA-256, {digest}", True
    return f"{shown}, SHA-256 agrees", False


def _sams(check: bool) -> Iterable[_Row]:
    from copick_cryosam.foundation.catalogue import SAMS, SamEntry, present_sam

    def state(path: Path | None, entry: SamEntry) -> tuple[str, bool]:
        if path is None:
            return "no", False
        if path.name != entry.file:
            return f"{path}, saved anew", False
        size = path.stat().st_size
        if size != entry.size:
            return f"{path}: expected {entry.size} bytes, found {size}", True
        if not check:
            return str(path), False
        return _compared(path, path, entry.sha256)

    for kind, entry in SAMS.items():
        found, wrong = state(present_sam(kind), entry)
        yield _Row(
            name=f"SAM {kind}",
            role="both",
            size=entry.size,
            licence=entry.licence,
            found=found,
            source=entry.url,
            sha256=entry.sha256,
            wrong=wrong,
        )


def _sam2s(check: bool) -> Iterable[_Row]:
    from copick_cryosam.foundation.catalogue import SAM2S, Sam2Entry, cached_transformer, find_sam2

    def state(folder: Path | None, entry: Sam2Entry) -> tuple[str, bool]:
        if folder is None:
            return ("in the Hugging Face cache" if cached_transformer(entry) is not None else "no"), False
        weights = folder / entry.weights
        if not check or not weights.is_file():
            return str(folder), False
        return _compared(folder, weights, entry.sha256)

    for name, entry in SAM2S.items():
        found, wrong = state(find_sam2(name), entry)
        yield _Row(
            name=name,
            role="segmenter",
            size=entry.size,
            licence=entry.licence,
            found=found,
            source=f"{entry.hub_id} {entry.revision}",
            sha256=entry.sha256,
            wrong=wrong,
        )


def _transformers() -> Iterable[_Row]:
    from copick_cryosam.foundation.catalogue import TRANSFORMERS, cached_transformer, find_transformer

    for name, entry in TRANSFORMERS.items():
        folder = find_transformer(name)
        cached = folder is None and cached_transformer(entry) is not None
        yield _Row(
            name=name,
            role="encoder",
            size=entry.size,
            licence=entry.licence,
            found="in the Hugging Face cache" if cached else "no" if folder is None else str(folder),
            source=f"{entry.hub_id} {entry.revision}{' (pickled)' if entry.pickled else ''}",
        )


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one as it is, so that paths can be copied."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    click.echo(title)
    for row in rows:
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo()
