"""`copick cryosam info`: what runs here."""

# The option decorators of copick carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["info"]

_PACKAGES = (
    "copick-cryosam",
    "copick",
    "copick-utils",
    "torch",
    "numpy",
    "scipy",
    "zarr",
    "segment-anything",
    "transformers",
    "monai",
)
_MODELS = ("embednet", "promptnet")


@click.command(name="info", short_help="Show versions, devices and the models that are found.")
def info() -> None:
    """Show versions, devices and the models that are found.

    \b
    Examples:
        # What to send along with a question
        copick cryosam info

    \b
    See Also:
        copick cryosam models: all models, their licences and where to get them
        copick inference cryosam: picks particles from one seed
        copick training sasi: trains a detector from a few points; one of its nets needs monai
    """
    _print("Versions", _versions())
    _print("Devices", _devices())
    _print("Models", _models())
    _print("Checkpoints", _checkpoints())


def _versions() -> list[tuple[str, str]]:
    from copick_cryosam.versions import versions

    return [(name, found or "not installed") for name, found in versions(_PACKAGES).items()]


def _devices() -> list[tuple[str, str]]:
    import torch

    from copick_cryosam.devices import cpu_computes_bf16

    bf16 = "computes in bf16" if cpu_computes_bf16() else "without bf16"
    rows = [("cpu", f"{torch.get_num_threads()} threads, {bf16}")]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    return rows if len(rows) > 1 else [*rows, ("cuda", "none")]


def _models() -> list[tuple[str, str]]:
    from copick_cryosam.errors import NotFoundError
    from copick_cryosam.weights import weight_bytes, weight_hash

    rows = []
    for name in _MODELS:
        try:
            found = weight_hash(name)
            rows.append(
                (name, f"signature {name}-{found[:12]}, {len(weight_bytes(name)) / 1e6:.1f} MB, SHA-256 {found}")
            )
        except NotFoundError as error:
            rows.append((name, f"missing: {error}"))
    return rows


def _checkpoints() -> list[tuple[str, str]]:
    from copick_cryosam.foundation import catalogue

    folders = catalogue.checkpoint_folders()
    found = [f"SAM {kind}" for kind in catalogue.SAMS if catalogue.present_sam(kind)]
    found += [name for name in catalogue.SAM2S if catalogue.find_sam2(name)]
    found += [name for name in catalogue.TRANSFORMERS if catalogue.find_transformer(name)]
    entries = (*catalogue.SAM2S.values(), *catalogue.TRANSFORMERS.values())
    cached = [entry.name for entry in entries if catalogue.cached_transformer(entry)]
    return [
        ("folders", ", ".join(map(_existing, folders)) or f"none, {catalogue.VARIABLE} is not set"),
        ("found", ", ".join(found) or "none; `copick cryosam models` says where to get them"),
        ("Hugging Face", f"{', '.join(cached) or 'none'} in its cache"),
    ]


def _existing(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (no such folder)"


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    click.echo(title)
    for name, value in rows:
        click.echo(f"  {name:<16} {value}")
