"""The official checkpoints that are known, and where they are on this machine.

Nothing is downloaded here and no model is loaded. SAM's files carry the first six digits of their MD5 in
their names; their SHA-256 is complete here. Transformers and SAM 2 are pinned to a commit of their Hugging Face
repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from copick_cryosam.errors import InputError, NotFoundError

__all__ = [
    "SAM2S",
    "SAMS",
    "TRANSFORMERS",
    "VARIABLE",
    "HubEntry",
    "Sam2Entry",
    "SamEntry",
    "SamKind",
    "TransformerEntry",
    "cached_transformer",
    "checkpoint_folders",
    "find_sam",
    "find_sam2",
    "find_transformer",
    "present_sam",
    "sam2_entry",
    "transformer_entry",
]

VARIABLE = "CRYOSAM_CHECKPOINTS"
"""The environment variable that names a folder of checkpoints, or several separated as in PATH."""

SamKind = Literal["vit_h", "vit_l", "vit_b"]


@dataclass(frozen=True, kw_only=True)
class SamEntry:
    """An official checkpoint of segment-anything.

    Attributes
    ----------
    file : official file name
    size : bytes
    sha256 : 64 hexadecimal digits
    parameters : number of parameters of the image encoder and the rest together
    width, layers : of the image encoder
    """

    kind: SamKind
    file: str
    size: int
    sha256: str
    parameters: int
    width: int
    layers: int
    licence: str = "Apache-2.0"

    @property
    def url(self) -> str:
        """Where the file can be downloaded."""
        return f"https://dl.fbaipublicfiles.com/segment_anything/{self.file}"


@dataclass(frozen=True, kw_only=True)
class HubEntry:
    """A model of Hugging Face at a pinned commit.

    Attributes
    ----------
    name : short name, as in ``--encoder``
    hub_id : repository at Hugging Face
    revision : commit of the repository
    parameters : number of parameters
    weights : file of the weights there
    gated : whether the licence has to be accepted at Hugging Face first
    """

    name: str
    hub_id: str
    revision: str
    parameters: int
    licence: str = "Apache-2.0"
    weights: str = "model.safetensors"
    gated: bool = False

    @property
    def size(self) -> int:
        """Bytes of the weights, about: they are float32."""
        return 4 * self.parameters

    @property
    def pickled(self) -> bool:
        """Whether the weights there are a pickle, which could run code, and have to be saved again first."""
        return not self.weights.endswith(".safetensors")

    @property
    def url(self) -> str:
        """The page of the pinned commit."""
        return f"https://huggingface.co/{self.hub_id}/tree/{self.revision}"


@dataclass(frozen=True, kw_only=True)
class TransformerEntry(HubEntry):
    """A vision transformer of Hugging Face.

    Attributes
    ----------
    embedding_dim : length of an embedding
    layers : transformer layers
    patch : edge of a patch, pixels
    """

    embedding_dim: int
    layers: int
    patch: int


@dataclass(frozen=True, kw_only=True)
class Sam2Entry(HubEntry):
    """SAM 2 as transformers saves it; the part for videos, which is not used here, included.

    Attributes
    ----------
    sha256 : of the weights, 64 hexadecimal digits
    width : channels of the image encoder's first blocks
    """

    sha256: str
    width: int


SAMS: dict[SamKind, SamEntry] = {
    entry.kind: entry
    for entry in (
        SamEntry(
            kind="vit_h",
            file="sam_vit_h_4b8939.pth",
            size=2564550879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            parameters=641_090_864,
            width=1280,
            layers=32,
        ),
        SamEntry(
            kind="vit_l",
            file="sam_vit_l_0b3195.pth",
            size=1249524607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            parameters=312_343_088,
            width=1024,
            layers=24,
        ),
        SamEntry(
            kind="vit_b",
            file="sam_vit_b_01ec64.pth",
            size=375042383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            parameters=93_735_728,
            width=768,
            layers=12,
        ),
    )
}
"""SAM by kind, the largest first."""


def _dino(
    name: str, hub: str, revision: str, parameters: int, embedding_dim: int, patch: int, weights: str
) -> TransformerEntry:
    return TransformerEntry(
        name=name,
        hub_id=f"facebook/{hub}",
        revision=revision,
        parameters=parameters,
        embedding_dim=embedding_dim,
        layers=12,
        patch=patch,
        weights=weights,
    )


def _dinov2(name: str, hub: str, revision: str, parameters: int, embedding_dim: int, layers: int) -> TransformerEntry:
    return TransformerEntry(
        name=name,
        hub_id=f"facebook/{hub}",
        revision=revision,
        parameters=parameters,
        embedding_dim=embedding_dim,
        layers=layers,
        patch=14,
    )


def _dinov3(name: str, hub: str, revision: str, parameters: int, embedding_dim: int, layers: int) -> TransformerEntry:
    return TransformerEntry(
        name=name,
        hub_id=f"facebook/{hub}-pretrain-lvd1689m",
        revision=revision,
        parameters=parameters,
        embedding_dim=embedding_dim,
        layers=layers,
        patch=16,
        licence="DINOv3 License",
        gated=True,
    )


_SAFE, _PICKLE = "model.safetensors", "pytorch_model.bin"
_REGISTERS = "dinov2-with-registers"
TRANSFORMERS: dict[str, TransformerEntry] = {
    entry.name: entry
    for entry in (
        _dino("dino-small", "dino-vits16", "a7a4d161f5c0bd70478c05ca5777ec7cd8848021", 21_813_504, 384, 16, _SAFE),
        _dino("dino-base", "dino-vitb16", "f205d5d8e640a89a2b8ef0369670dfc37cc07fc2", 86_389_248, 768, 16, _PICKLE),
        _dino("dino-small-8", "dino-vits8", "fc5da873905bdf18d2fbad89dafc45de22d8f4fa", 21_818_112, 384, 8, _PICKLE),
        _dino("dino-base-8", "dino-vitb8", "745a5a92b1e313ab3c2e95a558df5566b5b8e253", 86_398_464, 768, 8, _PICKLE),
        _dinov2("dinov2-small", "dinov2-small", "ed25f3a31f01632728cabb09d1542f84ab7b0056", 22_056_576, 384, 12),
        _dinov2("dinov2-base", "dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415", 86_580_480, 768, 12),
        _dinov2("dinov2-large", "dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c", 304_368_640, 1024, 24),
        _dinov2("dinov2-giant", "dinov2-giant", "611a9d42f2335e0f921f1e313ad3c1b7178d206d", 1_136_480_768, 1536, 40),
        _dinov2(
            "dinov2-reg-small", f"{_REGISTERS}-small", "0d9846e56b43a21fa46d7f3f5070f0506a5795a9", 22_058_112, 384, 12
        ),
        _dinov2(
            "dinov2-reg-base", f"{_REGISTERS}-base", "a1d738ccfa7ae170945f210395d99dde8adb1805", 86_583_552, 768, 12
        ),
        _dinov2(
            "dinov2-reg-large", f"{_REGISTERS}-large", "e4c89a4e05589de9b3e188688a303d0f3c04d0f3", 304_372_736, 1024, 24
        ),
        _dinov3("dinov3-small", "dinov3-vits16", "114c1379950215c8b35dfcd4e90a5c251dde0d32", 21_596_544, 384, 12),
        _dinov3("dinov3-base", "dinov3-vitb16", "5931719e67bbdb9737e363e781fb0c67687896bc", 85_660_416, 768, 12),
        _dinov3("dinov3-large", "dinov3-vitl16", "ea8dc2863c51be0a264bab82070e3e8836b02d51", 303_129_600, 1024, 24),
    )
}
"""Vision transformers by short name."""


def _sam2(size: str, revision: str, parameters: int, width: int, sha256: str) -> Sam2Entry:
    return Sam2Entry(
        name=f"sam2.1-{size}",
        hub_id=f"facebook/sam2.1-hiera-{size}",
        revision=revision,
        parameters=parameters,
        sha256=sha256,
        width=width,
    )


SAM2S: dict[str, Sam2Entry] = {
    entry.name: entry
    for entry in (
        _sam2(
            "large",
            "665f8e2ad61cf5f53d65644ff27c8ee525124610",
            224_446_642,
            144,
            "dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230",
        ),
        _sam2(
            "base-plus",
            "b7320756a13354e7530a63935656d35b2f91a290",
            80_850_178,
            112,
            "2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780",
        ),
        _sam2(
            "small",
            "ee5bba1d82bb8749febdf90f45e84b687142ba03",
            46_060_354,
            96,
            "0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60",
        ),
        _sam2(
            "tiny",
            "de431c4043854a71d8101e17995dfe596bf101a5",
            38_962_498,
            96,
            "48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7",
        ),
    )
}
"""SAM 2.1 by short name, the largest first."""


def checkpoint_folders() -> list[Path]:
    """The folders that `CRYOSAM_CHECKPOINTS` names, in its order; they need not exist."""
    return [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip()]


def present_sam(kind: SamKind) -> Path | None:
    """The checkpoint of a kind in `CRYOSAM_CHECKPOINTS`: the official file, or one saved anew as safetensors."""
    return next((path for path in _sam_places(kind) if path.is_file()), None)


def find_sam(model: str | None = None) -> Path:
    """The SAM checkpoint in `CRYOSAM_CHECKPOINTS`.

    Parameters
    ----------
    model : vit_h, vit_l or vit_b; None: the largest that is there

    Raises
    ------
    InputError
        No such model.
    NotFoundError
        None is there; the message names the files, the folders and where to get one.
    """
    if model is not None and model not in SAMS:
        raise InputError(f"SAM model: expected one of {', '.join(SAMS)}, found {model!r}", hint="Choose one of these")
    wanted = [entry for entry in SAMS.values() if model in (None, entry.kind)]
    for entry in wanted:
        found = present_sam(entry.kind)
        if found is not None:
            return found
    folders = [str(folder) if folder.is_dir() else f"{folder} (no such folder)" for folder in checkpoint_folders()]
    looked = f"none in {', '.join(folders)}" if folders else f"no folder, as {VARIABLE} is not set"
    files = " or ".join(entry.file for entry in wanted)
    raise NotFoundError(
        f"SAM checkpoint: expected {files}, found {looked}",
        hint=f"Download {wanted[0].url} ({wanted[0].size / 1e9:.1f} GB) and give it with --sam-checkpoint, or set "
        f"{VARIABLE} to its folder; `copick cryosam models` lists all",
    )


def transformer_entry(name: str) -> TransformerEntry | None:
    """The entry of a transformer by its short name or Hugging Face name; None: not in the catalogue."""
    return next((entry for entry in TRANSFORMERS.values() if name in (entry.name, entry.hub_id)), None)


def sam2_entry(name: str) -> Sam2Entry | None:
    """The entry of a SAM 2 by its short name or Hugging Face name; None: not in the catalogue."""
    return next((entry for entry in SAM2S.values() if name in (entry.name, entry.hub_id)), None)


def find_transformer(name: str) -> Path | None:
    """The folder of a transformer in `CRYOSAM_CHECKPOINTS`, which holds its ``config.json``; None: not there.

    Parameters
    ----------
    name : short name or Hugging Face name; the folder has the short name or the last part of the other
    """
    return _find_folder(name, transformer_entry(name))


def find_sam2(name: str) -> Path | None:
    """The folder of a SAM 2 in `CRYOSAM_CHECKPOINTS`, named as in `find_transformer`; None: not there."""
    return _find_folder(name, sam2_entry(name))


def cached_transformer(entry: HubEntry) -> Path | None:
    """The folder of a transformer or a SAM 2 in the cache of Hugging Face, at the pinned commit; None: not there."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    config, weights = (
        try_to_load_from_cache(entry.hub_id, file, revision=entry.revision) for file in ("config.json", entry.weights)
    )
    return Path(config).parent if isinstance(config, str) and isinstance(weights, str) else None


def _sam_places(kind: SamKind) -> Iterator[Path]:
    for folder in checkpoint_folders():
        official = folder / SAMS[kind].file
        yield official
        yield official.with_suffix(".safetensors")


def _find_folder(name: str, entry: HubEntry | None) -> Path | None:
    folders = [name] if entry is None else [entry.name, entry.hub_id]
    for folder in checkpoint_folders():
        for each in folders:
            place = folder / each.rsplit("/", 1)[-1]
            if (place / "config.json").is_file():
                return place
    return None
