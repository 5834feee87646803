"""Embeddings kept in the project as copick features: signed, whole, and refused where they do not match.

A tomogram has at most one set for each encoder, the feature type ``cryosam-<encoder>``: array ``0`` holds the
features, shape (C, z, y, x) on the encoder's coarse grid, as OME-Zarr that any tool can read, and the arrays
``foreground`` and ``centre`` the maps that need no query. They are as the encoder gave them, bit for bit, and not
whitened. What they were made of and with stands in the group's attributes, with a hash of every array, and is
written last: features without it are what a killed call left, and a missing or damaged chunk does not fit its hash.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import DataError, InputError, OutputError
from copick_cryosam.io.job import TomogramUri
from copick_cryosam.io.project import Project
from copick_cryosam.io.storage import reason, storage_errors, try_writing

if TYPE_CHECKING:
    import torch

    from copick_cryosam.features import DenseFeatures

__all__ = ["KEPT_ENCODERS", "Kept", "KeptEmbeddings", "Origin", "check_encoder", "digest"]

FORMAT = 1
"""Of the stored features. Raise it when their layout changes, or what encoders are given: `contrast.standardise`."""
KEPT_ENCODERS = ("embednet", "fake")
"""The encoders with features on one grid."""

_RECORD = "cryosam"
_VALUES, _MAPS = "0", ("foreground", "centre")
_CHUNK = 1 << 25
"""Bytes of a chunk, about. Features look like noise: compressed they take a tenth less room and thrice the time."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What decides the embeddings of a tomogram.

    Attributes
    ----------
    encoder, signature : its name, and what identifies its weights
    polarity : how particles look in the tomogram, dark or light; encoders are given bright ones
    voxel_spacing : Å
    shape_zyx : of the tomogram, voxels
    sha256 : of its voxels as float32, see `digest`
    """

    encoder: str
    signature: str
    polarity: str
    voxel_spacing: float
    shape_zyx: tuple[int, int, int]
    sha256: str


class Kept(Enum):
    """What is stored of a tomogram's embeddings."""

    ABSENT = "absent"
    USABLE = "usable"
    INCOMPLETE = "incomplete"
    """A killed call left a part."""
    DIFFERENT = "different"
    """Made of other data or with another encoder."""
    FOREIGN = "foreign"
    """Features of that name which CryoSAM did not write."""


_WORDS = {
    "signature": "encoder weights",
    "polarity": "polarity",
    "shape_zyx": "tomogram shape",
    "voxel_spacing": "voxel spacing",
    "sha256": "tomogram data",
    "encoder": "encoder",
}


def check_encoder(name: str) -> None:
    """Refuse encoders whose features cannot be kept.

    Raises
    ------
    InputError
        The encoder gives tokens of three views, or is not known.
    """
    if name not in KEPT_ENCODERS:
        raise InputError(
            f"embeddings: expected an encoder with features on one grid ({KEPT_ENCODERS[0]}), found {name}, whose "
            "tokens cannot be kept",
            hint="Use --preset embedded, or do not keep embeddings",
        )


def digest(volume: NDArray[Any]) -> str:
    """SHA-256 of an array, shape (..., z, y, x), plane by plane along z: how it is cut into chunks does not matter."""
    total = hashlib.sha256()
    _add(total, volume)
    return total.hexdigest()


class KeptEmbeddings:
    """The stored embeddings of one tomogram by one encoder.

    At most one call may write them at a time.

    Raises
    ------
    CryosamError
        The run has no such tomogram, see `Project.tomogram`.
    """

    def __init__(self, project: Project, run: str, tomogram: TomogramUri, encoder: str) -> None:
        self.run = run
        self.name = f"cryosam-{encoder}"
        self._tomogram = project.stored_tomogram(run, tomogram)

    @property
    def absent(self) -> bool:
        """Whether nothing of this name is stored."""
        return not self._stored()

    def compare(self, origin: Origin) -> tuple[Kept, str]:
        """What is stored, and in words why it cannot be used; nothing but metadata is read.

        Raises
        ------
        DataError
            The storage cannot be reached.
        """
        answer = Kept.ABSENT, "none are stored"
        for each in self._stored():
            answer = self._judge(self._record(each), origin)
            if answer[0] is Kept.USABLE:
                break
        return answer

    def load(
        self, origin: Origin, device: torch.device, progress: Callable[[int, int], None] | None = None
    ) -> DenseFeatures:
        """The stored features, exactly as they were kept.

        Parameters
        ----------
        progress : called after each slab with the cells along z read so far and all of them

        Raises
        ------
        DataError
            They cannot be used (see `compare`), or a chunk is missing or damaged.
        """
        import torch

        from copick_cryosam.features import CellGrid, DenseFeatures

        for each in self._stored():
            record = self._record(each)
            if record is None or self._judge(record, origin)[0] is not Kept.USABLE:
                continue
            values = self._read(each, _VALUES, record, progress)
            maps = {name: self._read(each, name, record) for name in _MAPS if name in record["arrays"]}
            z, y, x = (float(step) for step in record["stride"])
            return DenseFeatures(
                values=torch.from_numpy(values).to(device),
                grid=CellGrid((values.shape[1], values.shape[2], values.shape[3]), (z, y, x), origin.shape_zyx),
                **maps,
            )
        raise self._damaged(self.compare(origin)[1])

    def check_place(self, *, replace_foreign: bool = False) -> None:
        """Refuse now what could only fail after the encoding; nothing is left behind.

        Raises
        ------
        OutputError
            The overlay cannot be written; or features of this name are part of the read-only data, or were not
            written by CryoSAM.
        """
        where = f"run {self.run}: expected no features {self.name} yet"
        for each in self._stored():
            if each.read_only:
                raise OutputError(
                    f"{where}, found some that do not match in the read-only part of the project",
                    hint="Remove them there, or do not keep embeddings",
                )
            if not replace_foreign and self._record(each) is _FOREIGN:
                raise OutputError(
                    f"{where}, found some that CryoSAM did not write",
                    hint="Rename them, or replace them with copick process cryosam-embed --overwrite",
                )
        place = self._tomogram.voxel_spacing
        try:
            try_writing(place.fs_overlay, place.overlay_path)
        except storage_errors() as error:
            raise OutputError(
                f"overlay {place.overlay_path}: expected a place that can be written, found: {reason(error)}",
                hint="Set overlay_root in the config to a folder of yours",
            ) from None

    def save(self, origin: Origin, features: DenseFeatures, *, replace_foreign: bool = False) -> None:
        """Keep features in place of those that are stored, slab by slab, what signs them last.

        Parameters
        ----------
        features : as the encoder gave them, not whitened

        Raises
        ------
        OutputError
            See `check_place`; or the storage fails. What was written by then is removed, as it is on any other
            exception, KeyboardInterrupt included.
        """
        self.check_place(replace_foreign=replace_foreign)
        try:
            for each in self._stored():
                # The signature goes first: a call killed while it deletes leaves nothing that looks whole.
                _open(each, "a").attrs.put({_RECORD: {"format": FORMAT}})
                each.delete()
            self._write(origin, features)
        except storage_errors(KeyError) as error:
            # zarr's file store reports a failed write as a missing key
            raise OutputError(
                f"run {self.run}: expected room for embeddings, found: {reason(error.__cause__ or error)}",
                hint="Free space or check the connection, or do not keep embeddings",
            ) from None

    def _write(self, origin: Origin, features: DenseFeatures) -> None:
        stored = self._tomogram.new_features(self.name)
        complete = False
        try:
            group = _open(stored, "w")
            group.attrs.put({_RECORD: {"format": FORMAT}})
            arrays = {_VALUES: _write_array(group, _VALUES, features.values)}
            for name in _MAPS:
                values = getattr(features, name)
                if values is not None:
                    arrays[name] = _write_array(group, name, values)
            record = {
                "format": FORMAT,
                "origin": {**asdict(origin), "shape_zyx": list(origin.shape_zyx)},
                "whitening": "none",
                "stride": list(features.grid.stride),
                "arrays": arrays,
            }
            group.attrs.put({"multiscales": [_multiscales(features, origin, self.name)], _RECORD: record})
            complete = True
        finally:
            if not complete:
                with contextlib.suppress(FileNotFoundError):
                    stored.delete()

    def _stored(self) -> list[Any]:
        """The features of this name, those in the read-only part first."""
        try:
            self._tomogram.refresh_features()
        except storage_errors() as error:
            raise self._damaged(reason(error)) from None
        return [each for each in self._tomogram.features if each.feature_type == self.name]

    def _record(self, stored: Any) -> Mapping[str, Any] | None:
        """What signs the features; None for a part of them, `_FOREIGN` for those of others."""
        from zarr.errors import MetadataError

        try:
            group = _open(stored, "r")
            record = dict(group.attrs).get(_RECORD)
            if record is None:
                return _FOREIGN if list(group.array_keys()) else None
        except (KeyError, ValueError, MetadataError):
            return None
        except storage_errors() as error:
            raise self._damaged(reason(error)) from None
        return record if isinstance(record, dict) and "origin" in record else None

    def _judge(self, record: Mapping[str, Any] | None, origin: Origin) -> tuple[Kept, str]:
        if record is _FOREIGN:
            return Kept.FOREIGN, "CryoSAM did not write them"
        if record is None:
            return Kept.INCOMPLETE, "they are incomplete"
        if record["format"] != FORMAT:
            return Kept.DIFFERENT, f"they have format {record['format']}, this version reads {FORMAT}"
        made, wanted = record["origin"], {**asdict(origin), "shape_zyx": list(origin.shape_zyx)}
        for field, words in _WORDS.items():
            if made.get(field) != wanted[field]:
                here, there = (str(each[field])[:40] for each in (wanted, {field: None, **made}))
                told = "" if field == "sha256" else f" ({there}, now {here})"
                return Kept.DIFFERENT, f"they were made with other {words}{told}"
        return Kept.USABLE, "they match"

    def _read(
        self, stored: Any, name: str, record: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[Any]:
        total = hashlib.sha256()
        try:
            array = _open(stored, "r")[name]
            values = np.empty(array.shape, dtype=array.dtype)
            depth = array.shape[-3]
            for slab in _slabs(depth, array.chunks[-3]):
                values[..., slab, :, :] = array[(..., slab, slice(None), slice(None))]
                _add(total, values[..., slab, :, :])
                if progress is not None:
                    progress(slab.stop, depth)
        except storage_errors(KeyError, ValueError, TypeError, RuntimeError) as error:
            raise self._damaged(reason(error)) from None
        if total.hexdigest() != record["arrays"][name]:
            raise self._damaged("chunks that are missing or changed")
        return values

    def _damaged(self, found: str) -> DataError:
        return DataError(
            f"run {self.run}: expected readable embeddings {self.name}, found: {found}",
            hint="Make them again with copick process cryosam-embed --overwrite",
        )


_FOREIGN: dict[str, Any] = {}


def _open(stored: Any, mode: str) -> Any:
    import zarr

    store = stored.zarr()
    # zarr's file store takes every failed read (a lost connection, say) for a missing chunk, that is, for zeros.
    if mode == "r" and hasattr(store, "exceptions"):
        store.exceptions = (KeyError,)
    return zarr.open_group(store, mode=mode)


def _write_array(group: Any, name: str, values: Any) -> str:
    """Write a tensor or an array, shape (C, z, y, x) or (z, y, x), slab by slab; returns its hash."""
    total = hashlib.sha256()
    shape = tuple(values.shape)
    plane = values[..., 0, :, :]
    size = np.dtype(str(values.dtype).removeprefix("torch.")).itemsize * int(np.prod(plane.shape))
    # Chunks of one depth: zarr stores a last one that is not full in full.
    depth = -(-shape[-3] // -(-shape[-3] // max(1, _CHUNK // size)))
    array = None
    for slab in _slabs(shape[-3], depth):
        part = values[..., slab, :, :]
        part = part if isinstance(part, np.ndarray) else part.cpu().numpy()
        if array is None:
            chunks = (*shape[:-3], depth, *shape[-2:])
            array = group.create_dataset(name, shape=shape, chunks=chunks, dtype=part.dtype, compressor=None)
        array[..., slab, :, :] = part
        _add(total, part)
    return total.hexdigest()


def _add(total: Any, values: NDArray[Any]) -> None:
    for plane in range(values.shape[-3]):
        total.update(np.ascontiguousarray(values[..., plane, :, :]))


def _slabs(depth: int, step: int) -> Iterator[slice]:
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


def _multiscales(features: DenseFeatures, origin: Origin, name: str) -> dict[str, Any]:
    """OME-Zarr 0.4: cells are as large as their stride, the first centred on half a stride less half a voxel."""
    spacing, stride = origin.voxel_spacing, features.grid.stride
    transformations = [
        {"type": "scale", "scale": [1.0, *(step * spacing for step in stride)]},
        {"type": "translation", "translation": [0.0, *((0.5 * step - 0.5) * spacing for step in stride)]},
    ]
    axes = [{"name": each, "type": "space", "unit": "angstrom"} for each in "zyx"]
    return {
        "version": "0.4",
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, *axes],
        "datasets": [{"path": _VALUES, "coordinateTransformations": transformations}],
    }
