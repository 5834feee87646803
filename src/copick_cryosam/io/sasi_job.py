"""What a detector is trained from, and where a trained one writes: objects, picks, tomograms, the model's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from copick_cryosam.errors import InputError
from copick_cryosam.io.job import PicksUri, SegmentationUri, TomogramUri, check_spacing

__all__ = ["DetectionJob", "TrainingJob"]

DEFAULT_USER = "sasi"
DEFAULT_NAME = "sasi"
"""Of the multilabel segmentation."""

_EVERY = "{object}"
"""Stands for each of the model's objects in turn."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to learn from; how to learn is `SasiSettings`. Make it with `TrainingJob.create`.

    Attributes
    ----------
    config : path of the copick configuration
    tomogram : the kind of tomogram that is learned from
    points : picks that a person vouches for; user and session may be patterns
    model : where the model goes, see `copick_cryosam.sasi.model`
    runs : the runs that are learned from, those without points for what needs no labels; None for all with points
    pseudo : picks whose scores are expected precisions, as CryoSAM's are
    min_precision : those of a lower one are left out
    overwrite : replace a model that exists
    """

    config: str
    tomogram: TomogramUri
    points: tuple[PicksUri, ...]
    model: str
    runs: tuple[str, ...] | None = None
    pseudo: tuple[PicksUri, ...] = ()
    min_precision: float = 0.9
    overwrite: bool = False

    @classmethod
    def create(
        cls,
        *,
        config: str,
        tomogram: str,
        points: tuple[str, ...],
        model: str,
        runs: tuple[str, ...] | None = None,
        pseudo: tuple[str, ...] = (),
        min_precision: float = 0.9,
        overwrite: bool = False,
    ) -> TrainingJob:
        """Parse the URIs.

        Raises
        ------
        InputError
            A URI is malformed, there are no points, pseudo-labels are of another object than the points or the same
            picks as these, or `min_precision` is no share.
        """
        if not points:
            raise InputError("input URI: expected picks of at least one object, found none", hint="Give them with -i")
        human = tuple(dict.fromkeys(PicksUri.parse(uri, "input URI") for uri in points))
        machine = tuple(dict.fromkeys(PicksUri.parse(uri, "pseudo-label URI") for uri in pseudo))
        objects = list(dict.fromkeys(uri.object_name for uri in human))
        for uri in machine:
            if uri.object_name not in objects:
                raise InputError(
                    f"pseudo-label URI: expected an object that has points ({', '.join(objects)}), found {uri}",
                    hint=f"Give at least one {uri.object_name} that you vouch for with -i",
                )
            if uri in human:
                raise InputError(
                    f"pseudo-label URI: expected other picks than those of -i, found {uri} in both", hint="Choose one"
                )
        if not 0 < min_precision <= 1:
            raise InputError(
                f"--min-precision: expected more than 0 and at most 1, found {min_precision:g}",
                hint="Give a share, such as 0.9",
            )
        return cls(
            config=config,
            tomogram=TomogramUri.parse(tomogram, "tomogram URI"),
            points=human,
            model=model,
            runs=runs or None,
            pseudo=machine,
            min_precision=min_precision,
            overwrite=overwrite,
        )

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the classes, numbered from 1 in this order."""
        return tuple(dict.fromkeys(uri.object_name for uri in self.points))

    def identity(self) -> dict[str, Any]:
        """What was learned from, for the model's record; JSON types only."""
        return {
            "tomogram": str(self.tomogram),
            "points": [str(uri) for uri in self.points],
            "pseudo": [str(uri) for uri in self.pseudo],
            "min_precision": self.min_precision if self.pseudo else None,
            "runs": None if self.runs is None else sorted(self.runs),
        }


@dataclass(frozen=True, kw_only=True)
class DetectionJob:
    """Where a trained detector looks, and what it writes. Make it with `DetectionJob.create`.

    Attributes
    ----------
    config : path of the copick configuration
    tomogram : the kind of tomogram that is searched
    model : of the detector
    user_id, session_id : of the picks, of which each object of the model gets a set
    output_segmentation : the multilabel segmentation, whose voxels are the objects' labels
    runs : the runs that are searched; None for all
    overwrite : replace results that exist
    """

    config: str
    tomogram: TomogramUri
    model: str
    user_id: str
    session_id: str
    output_segmentation: SegmentationUri
    runs: tuple[str, ...] | None = None
    overwrite: bool = False

    @classmethod
    def create(
        cls,
        *,
        config: str,
        tomogram: str,
        model: str,
        output: str = "",
        output_segmentation: str = "",
        runs: tuple[str, ...] | None = None,
        overwrite: bool = False,
    ) -> DetectionJob:
        """Parse the URIs and fill the defaults: picks of user ``sasi``, session ``1``, and masks ``sasi``.

        Raises
        ------
        InputError
            A URI is malformed, or the segmentation's voxel spacing is not the tomogram's.
        """
        of_tomogram = TomogramUri.parse(tomogram, "tomogram URI")
        form = "user/session, for example sasi/1"
        if ":" in output or "@" in output or "?" in output:
            raise InputError(
                f"output: expected user/session, as every object of the model gets its picks, found {output!r}",
                hint=f"Write {form}",
            )
        # An object's name in front lets the usual rules check it.
        place = PicksUri.parse_output(f"object:{output or DEFAULT_USER}", "output", "object")
        masks = SegmentationUri.parse_output(
            output_segmentation,
            "output segmentation URI",
            PicksUri(DEFAULT_NAME, place.user_id, place.session_id),
            multilabel=True,
        )
        check_spacing(masks, of_tomogram)
        return cls(
            config=config,
            tomogram=of_tomogram,
            model=model,
            user_id=place.user_id,
            session_id=place.session_id,
            output_segmentation=masks,
            runs=runs or None,
            overwrite=overwrite,
        )

    def set_of(self, name: str) -> PicksUri:
        """The picks of an object."""
        return PicksUri(name, self.user_id, self.session_id)

    @property
    def output(self) -> PicksUri:
        """Stands for the picks of every object."""
        return self.set_of(_EVERY)

    def identity(self) -> dict[str, Any]:
        """What decides the result in one run beside the model, for the completion record; JSON types only."""
        return {
            "tomogram": str(self.tomogram),
            "output": str(self.output),
            "output_segmentation": str(self.output_segmentation),
        }
