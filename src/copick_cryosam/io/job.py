"""What to pick: the project, the tomogram, the seeds and where the results go.

copick's URIs name all of them. Here they are parsed strictly: an output is one place, never a
pattern, and a seed URI may leave user and session open but not the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from copick_cryosam.errors import InputError

__all__ = [
    "DEFAULT_SESSION",
    "DEFAULT_USER",
    "Job",
    "PicksUri",
    "SegmentationUri",
    "TomogramUri",
    "check_spacing",
    "same_spacing",
]

DEFAULT_USER = "cryosam"
DEFAULT_SESSION = "1"

SPACING_TOLERANCE = 1e-3
"""Relative difference of two voxel spacings that are taken for the same: headers are rounded."""

_PICKS_FORM = "object:user/session, for example ribosome:curator/1"
_SEGMENTATION_FORM = "name:user/session@spacing, for example ribosome:cryosam/1@10.0"
_TOMOGRAM_FORM = "type@spacing, for example wbp@10.0"


def same_spacing(a: float, b: float) -> bool:
    """Whether two voxel spacings in Å are the same within `SPACING_TOLERANCE`."""
    return abs(a - b) <= SPACING_TOLERANCE * max(abs(a), abs(b))


@dataclass(frozen=True)
class PicksUri:
    """Picks of one object; user and session may be glob patterns where picks are read."""

    object_name: str
    user_id: str
    session_id: str

    @classmethod
    def parse(cls, uri: str, field: str) -> PicksUri:
        """Read ``object[:user[/session]]``; what is left out is ``*``.

        Raises
        ------
        InputError
            Malformed, a regular expression, or a pattern in place of the object.
        """
        parts = _parse(uri, "picks", field, _PICKS_FORM)
        parsed = cls(parts["object_name"], parts["user_id"], parts["session_id"])
        _require_literal(parsed.object_name, uri, field, _PICKS_FORM)
        if not parsed.user_id or not parsed.session_id:
            raise _malformed(uri, field, _PICKS_FORM)
        return parsed

    @classmethod
    def parse_output(cls, uri: str, field: str, default_object: str) -> PicksUri:
        """Read an output URI; user, session and object fall back to ``cryosam``, ``1`` and `default_object`."""
        parts = _parse(uri or default_object, "picks", field, _PICKS_FORM)
        filled = _fill(parts["object_name"] or default_object, parts["user_id"], parts["session_id"])
        for value in filled:
            _require_name(value, uri, field, _PICKS_FORM)
        return cls(*filled)

    def matches(self, object_name: str, user_id: str, session_id: str) -> bool:
        """Whether picks with these names are among those the URI stands for."""
        return (
            object_name == self.object_name
            and fnmatchcase(user_id, self.user_id)
            and fnmatchcase(session_id, self.session_id)
        )

    def __str__(self) -> str:
        return f"{self.object_name}:{self.user_id}/{self.session_id}"


@dataclass(frozen=True)
class SegmentationUri:
    """A segmentation; the voxel spacing in Å is None where the URI leaves it open."""

    name: str
    user_id: str
    session_id: str
    voxel_spacing: float | None

    @classmethod
    def parse(cls, uri: str, field: str) -> SegmentationUri:
        """Read ``name[:user[/session]][@spacing]`` of a segmentation that exists; what is left out is ``*``."""
        parts = _parse(uri, "segmentation", field, _SEGMENTATION_FORM)
        _require_literal(parts["name"], uri, field, _SEGMENTATION_FORM)
        if not parts["user_id"] or not parts["session_id"]:
            raise _malformed(uri, field, _SEGMENTATION_FORM)
        spacing = _spacing(parts["voxel_spacing"], uri, field, _SEGMENTATION_FORM)
        return cls(parts["name"], parts["user_id"], parts["session_id"], spacing)

    @classmethod
    def parse_output(cls, uri: str, field: str, default: PicksUri, *, multilabel: bool = False) -> SegmentationUri:
        """Read an output URI; name, user and session fall back to those of the output picks.

        Parameters
        ----------
        multilabel : one segmentation of several objects; otherwise an instance and a binary one of one object
        """
        parts = _parse(uri or default.object_name, "segmentation", field, _SEGMENTATION_FORM)
        name, user_id, session_id = (
            given if given not in ("", "*") else fallback
            for given, fallback in (
                (parts["name"], default.object_name),
                (parts["user_id"], default.user_id),
                (parts["session_id"], default.session_id),
            )
        )
        for value in (name, user_id, session_id):
            _require_name(value, uri, field, _SEGMENTATION_FORM)
        if parts["panoptic"] or parts["instance" if multilabel else "multilabel"]:
            written = "A multilabel segmentation is" if multilabel else "An instance and a binary segmentation are"
            raise InputError(
                f"{field}: expected no type or ?{'multilabel' if multilabel else 'instance'}=true, found {uri!r}",
                hint=f"{written} written{'' if multilabel else ' together'}; leave the type out",
            )
        return cls(name, user_id, session_id, _spacing(parts["voxel_spacing"], uri, field, _SEGMENTATION_FORM))

    def matches(self, name: str, user_id: str, session_id: str) -> bool:
        """Whether a segmentation with these names is among those the URI stands for, whatever its spacing."""
        return name == self.name and fnmatchcase(user_id, self.user_id) and fnmatchcase(session_id, self.session_id)

    def __str__(self) -> str:
        spacing = "" if self.voxel_spacing is None else f"@{self.voxel_spacing}"
        return f"{self.name}:{self.user_id}/{self.session_id}{spacing}"


@dataclass(frozen=True)
class TomogramUri:
    """A kind of tomogram; the voxel spacing in Å is None where the URI leaves it open."""

    tomo_type: str
    voxel_spacing: float | None

    @classmethod
    def parse(cls, uri: str, field: str) -> TomogramUri:
        """Read ``type[@spacing]``.

        Raises
        ------
        InputError
            Malformed, a pattern, or a spacing that is no positive number.
        """
        parts = _parse(uri, "tomogram", field, _TOMOGRAM_FORM)
        _require_literal(parts["tomo_type"], uri, field, _TOMOGRAM_FORM)
        return cls(parts["tomo_type"], _spacing(parts["voxel_spacing"], uri, field, _TOMOGRAM_FORM))

    def __str__(self) -> str:
        return self.tomo_type if self.voxel_spacing is None else f"{self.tomo_type}@{self.voxel_spacing}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to pick; how to pick is `Settings`. Make it with `Job.create`, which fills the defaults.

    Attributes
    ----------
    config : path of the copick configuration
    tomogram : the kind of tomogram that is searched
    seeds : the labelled particles; they may come from any run
    output : the picks that are written
    output_segmentation : the instance and the binary segmentation that are written; None for points only
    runs : the runs that are searched; None for all
    seed_runs : the runs whose seeds are used; None for all
    negatives : picks of what is not wanted
    roi : segmentation outside of which nothing is picked
    overwrite : replace results that exist
    reuse_embeddings : use stored embeddings of a tomogram where they match
    keep_embeddings : store those that are computed, in place of such that do not match
    output_average : MRC file of the average of all picks of this call; None for none
    """

    config: str
    tomogram: TomogramUri
    seeds: PicksUri
    output: PicksUri
    output_segmentation: SegmentationUri | None
    runs: tuple[str, ...] | None = None
    seed_runs: tuple[str, ...] | None = None
    negatives: PicksUri | None = None
    roi: SegmentationUri | None = None
    overwrite: bool = False
    reuse_embeddings: bool = True
    keep_embeddings: bool = False
    output_average: str | None = None

    @classmethod
    def create(
        cls,
        *,
        config: str,
        tomogram: str,
        seeds: str,
        output: str = "",
        output_segmentation: str = "",
        points_only: bool = False,
        runs: tuple[str, ...] | None = None,
        seed_runs: tuple[str, ...] | None = None,
        negatives: str | None = None,
        roi: str | None = None,
        overwrite: bool = False,
        reuse_embeddings: bool = True,
        keep_embeddings: bool = False,
        output_average: str | None = None,
    ) -> Job:
        """Parse the URIs and fill the defaults.

        The output's object is that of the seeds, user ``cryosam``, session ``1``; the segmentation takes all
        three from the output picks and its voxel spacing from the tomogram.

        Raises
        ------
        InputError
            A URI is malformed, the segmentation's voxel spacing is not the tomogram's, or the output would
            replace the seeds or the negatives.
        """
        of_tomogram = TomogramUri.parse(tomogram, "tomogram URI")
        of_seeds = PicksUri.parse(seeds, "input URI")
        to = PicksUri.parse_output(output, "output URI", of_seeds.object_name)
        masks = None
        if not points_only:
            masks = SegmentationUri.parse_output(output_segmentation, "output segmentation URI", to)
        elif output_segmentation:
            raise InputError(
                f"output segmentation URI: expected none with points only, found {output_segmentation!r}",
                hint="Leave out either --points-only or the segmentation",
            )
        check_spacing(masks, of_tomogram)
        against = None if negatives is None else PicksUri.parse(negatives, "negatives URI")
        for read, field in ((of_seeds, "input URI"), (against, "negatives URI")):
            if read == to:
                raise InputError(f"output URI: expected other picks than the {field}, found {to}", hint="Change one")
        return cls(
            config=config,
            tomogram=of_tomogram,
            seeds=of_seeds,
            output=to,
            output_segmentation=masks,
            runs=runs or None,
            seed_runs=seed_runs or None,
            negatives=against,
            roi=None if roi is None else SegmentationUri.parse(roi, "ROI URI"),
            overwrite=overwrite,
            reuse_embeddings=reuse_embeddings,
            keep_embeddings=keep_embeddings,
            output_average=output_average,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the result in one run, for the completion record; JSON types only.

        Left out: where the project lies, which runs are searched, whether results are replaced, whether
        embeddings are stored (they are what would be computed), and the average over runs.
        """
        return {
            "tomogram": str(self.tomogram),
            "seeds": str(self.seeds),
            "seed_runs": None if self.seed_runs is None else sorted(self.seed_runs),
            "negatives": None if self.negatives is None else str(self.negatives),
            "roi": None if self.roi is None else str(self.roi),
            "output": str(self.output),
            "output_segmentation": None if self.output_segmentation is None else str(self.output_segmentation),
        }


def check_spacing(masks: SegmentationUri | None, tomogram: TomogramUri) -> None:
    """Refuse masks at another voxel spacing than the tomogram's with an `InputError`."""
    if masks is None or masks.voxel_spacing is None or tomogram.voxel_spacing is None:
        return
    if not same_spacing(masks.voxel_spacing, tomogram.voxel_spacing):
        raise InputError(
            f"output segmentation URI: expected the tomogram's voxel spacing {tomogram.voxel_spacing}, "
            f"found {masks.voxel_spacing}",
            hint="Masks are written on the tomogram's grid; leave the spacing out",
        )


def _parse(uri: str, kind: str, field: str, form: str) -> dict[str, Any]:
    from copick.util.uri import parse_copick_uri

    try:
        parts: dict[str, Any] = parse_copick_uri(uri, kind)
    except ValueError:
        raise _malformed(uri, field, form) from None
    if parts["pattern_type"] != "glob" or ("?" in uri and kind != "segmentation"):
        raise _malformed(uri, field, form)
    return parts


def _fill(name: str, user_id: str, session_id: str) -> tuple[str, str, str]:
    return (
        name,
        user_id if user_id not in ("", "*") else DEFAULT_USER,
        session_id if session_id not in ("", "*") else DEFAULT_SESSION,
    )


def _require_literal(value: str, uri: str, field: str, form: str) -> None:
    if not value or any(character in value for character in "*?[/: "):
        raise _malformed(uri, field, form)


def _require_name(value: str, uri: str, field: str, form: str) -> None:
    """copick would silently turn characters that it reserves into dashes and write to another place."""
    from copick.util.escape import sanitize_name

    try:
        clean = sanitize_name(value, suppress_warnings=True)
    except ValueError:
        raise _malformed(uri, field, form) from None
    if clean != value or any(character in value for character in "[]{}"):
        raise InputError(
            f'{field}: expected names without spaces, underscores, wildcards or <>:"/\\|?*, found {value!r} in {uri!r}',
            hint=f"Write {form}",
        )


def _spacing(value: str, uri: str, field: str, form: str) -> float | None:
    if value == "*":
        return None
    try:
        spacing = float(value)
    except ValueError:
        raise _malformed(uri, field, form) from None
    if not 0 < spacing < float("inf"):
        raise _malformed(uri, field, form)
    return spacing


def _malformed(uri: str, field: str, form: str) -> InputError:
    return InputError(f"{field}: expected {form.split(',')[0]}, found {uri!r}", hint=f"Write {form}")
