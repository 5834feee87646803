"""Which models the settings name, and whether they are here; nothing is loaded or downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from copick_cryosam.config import EncoderSettings, SegmenterSettings, Settings
from copick_cryosam.errors import NotFoundError
from copick_cryosam.foundation.catalogue import (
    SAMS,
    Sam2Entry,
    SamEntry,
    TransformerEntry,
    cached_transformer,
    find_sam2,
    find_transformer,
    sam2_entry,
    transformer_entry,
)

__all__ = ["NamedModel", "named_models"]

_EMBEDDED = ("embednet", "promptnet", "fake")


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that the settings name.

    Attributes
    ----------
    name : as in the settings
    place : where a foundation model would be loaded from, for the user to read; None: part of the package, or unknown
    entry : of the catalogue; None: not in it
    """

    name: str
    place: str | None = None
    entry: SamEntry | Sam2Entry | TransformerEntry | None = None

    @property
    def known(self) -> bool:
        """Whether its size and speed are known."""
        return self.entry is not None or self.name in _EMBEDDED


def named_models(settings: Settings) -> dict[str, NamedModel]:
    """The encoder and the segmenter of the settings, by these words.

    Checkpoints of SAM are looked for, opened and recognised. Transformers and SAM 2 may still have to be downloaded.

    Raises
    ------
    NotFoundError, DataError, InputError
        A checkpoint or a package is missing, or the checkpoint cannot be used.
    """
    return {"encoder": _encoder(settings.encoder), "segmenter": _segmenter(settings.segmenter)}


def _segmenter(settings: SegmenterSettings) -> NamedModel:
    if settings.name == "sam":
        return _sam(settings.checkpoint, settings.model)
    return _sam2(settings.checkpoint) if settings.name == "sam2" else NamedModel(name=settings.name)


def _encoder(settings: EncoderSettings) -> NamedModel:
    name, revision = settings.name, settings.revision
    if name == "sam":
        return _sam(settings.checkpoint, None)
    entry = transformer_entry(name)
    if name in _EMBEDDED or (entry is None and "/" not in name and not Path(name).expanduser().is_dir()):
        # What is neither is refused, with the names there are, when it is loaded.
        return NamedModel(name=name)

    def refuse() -> None:
        from copick_cryosam.foundation.transformer import transformer_folder

        transformer_folder(name)

    return _hub_model("encoder", name, revision, entry, find_transformer, refuse)


def _sam2(checkpoint: str | None) -> NamedModel:
    from copick_cryosam.foundation.sam2_model import sam2_folder, sam2_name

    name, revision = sam2_name(checkpoint)

    def refuse() -> None:
        sam2_folder(name)

    return _hub_model("segmenter.checkpoint", name, revision, sam2_entry(name), find_sam2, refuse)


def _hub_model(
    setting: str,
    name: str,
    revision: str | None,
    entry: Sam2Entry | TransformerEntry | None,
    find: Callable[[str], Path | None],
    refuse: Callable[[], None],
) -> NamedModel:
    """A model in a folder or at Hugging Face; `refuse` raises the error of what is not to be had."""
    if find_spec("transformers") is None:
        raise NotFoundError(
            f"{setting} {name}: expected the package transformers, found none",
            hint="pip install 'copick-cryosam[foundation]'",
        )
    if Path(name).expanduser().is_dir():
        return _in_folder(setting, name, Path(name).expanduser(), None)
    folder = find(name) if revision is None else None
    if folder is not None:
        return _in_folder(setting, name, folder, entry)
    if revision is None and (entry is None or entry.pickled):
        # Refused before anything is downloaded: no such folder, no commit, or pickled weights only.
        refuse()
    if entry is None:
        return NamedModel(name=name, place="Hugging Face")
    cached = revision in (None, entry.revision) and cached_transformer(entry) is not None
    size = f"Hugging Face, about {entry.size / 1e9:.1f} GB unless it is in the cache"
    return NamedModel(name=name, place="the Hugging Face cache" if cached else size, entry=entry)


def _in_folder(setting: str, name: str, folder: Path, entry: Sam2Entry | TransformerEntry | None) -> NamedModel:
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"{setting} {name}: expected a folder with config.json, found none in it",
            hint="Give the folder of a transformer, or a name that `copick cryosam models` lists",
        )
    return NamedModel(name=name, place=str(folder), entry=entry)


def _sam(checkpoint: str | None, model: str | None) -> NamedModel:
    from copick_cryosam.foundation.checkpoints import identify_sam

    path, kind = identify_sam(checkpoint, model)
    return NamedModel(name=f"SAM {kind}", place=str(path), entry=SAMS[kind])
