"""Settings of the method, in one object, and the presets that fill it.

Every number that a stage needs stands here with its unit and where it comes from. The
settings say *how* to pick; *what* to pick (project, tomogram, seeds) is a `Job`
(`copick_cryosam.io.project`). They are saved whole in every completion record.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from copick_cryosam.errors import InputError

Polarity = Literal["auto", "dark", "light"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
AnySettings = TypeVar("AnySettings", bound=BaseModel)
HALO = 48
"""Voxels that EmbedNet sees on each side of a tile, a multiple of 16. With 32, one cell of a hundred agrees with what
it is without tiles at a cosine of 0.59 or less, with 48 of 0.99 (tiles of 64 voxels)."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class EncoderSettings(_Settings):
    """Which encoder turns the tomogram into features (eq. 3)."""

    name: str = Field(
        "embednet",
        description="embednet, sam (the trunk of a SAM checkpoint), fake, a vision transformer by its short name "
        "(`copick cryosam models` lists them) or Hugging Face name, or the path of a local folder that holds one",
    )
    tile: int = Field(
        224,
        ge=32,
        le=1024,
        multiple_of=16,
        description="embednet: edge of the block encoded at once, voxels of the net's spacing",
    )
    turns: int = Field(
        3,
        ge=1,
        le=4,
        description="embednet: as how many of itself and its half turns about z, y and x each block is encoded, for "
        "the mean of their features",
    )
    checkpoint: str | None = Field(None, description="sam: the checkpoint; none: looked for in CRYOSAM_CHECKPOINTS")
    revision: str | None = Field(
        None, description="Hugging Face names: the commit to use; none: the one pinned for a short name"
    )
    longest_side: int | None = Field(
        None,
        ge=64,
        le=4096,
        description="vision transformers: pixels of a plane's longer side; none: one pixel per voxel (sam: 1024)",
    )
    stride: int = Field(2, ge=1, le=16, description="vision transformers: voxels per cell of the similarity map")
    whitening: Literal["none", "mean", "full"] = Field(
        "none", description="vision transformers: background statistics taken off the features before the cosine"
    )
    batch: int = Field(8, ge=1, description="vision transformers: planes encoded in one call")
    precision: Precision = Field(
        "auto",
        description="embednet: auto is bf16 where the device computes with it, and fp32 elsewhere; vision "
        "transformers: auto is bf16 on a GPU and fp32 on the CPU",
    )
    compile: bool = Field(False, description="vision transformers: torch.compile, worth it for many tomograms")


class SegmenterSettings(_Settings):
    """Which plane segmenter is prompted, and when cross-plane self-prompting stops (eqs. 1 and 2)."""

    name: str = Field("promptnet", description="registered segmenter: promptnet, sam, sam2, fake")
    checkpoint: str | None = Field(
        None,
        description="sam: path of the checkpoint, its type is recognised; none: CRYOSAM_CHECKPOINTS is searched. sam2: "
        "short name, folder, or NAME@COMMIT of Hugging Face; none: sam2.1-large",
    )
    model: Literal["vit_h", "vit_l", "vit_b"] | None = Field(
        None, description="sam: the type to look for in CRYOSAM_CHECKPOINTS; none: the largest that is there"
    )
    longest_side: int | None = Field(
        None, ge=64, le=1024, description="sam, sam2: pixels of a plane's longer side; none: 1024, as trained"
    )
    padding: Literal["native", "square"] = Field(
        "native",
        description="sam: planes at their own aspect, or padded to a square as published (slower); sam2 always pads",
    )
    channels: Literal["repeat", "mean", "neighbours"] = Field(
        "repeat",
        description="sam, sam2: the plane three times, the mean of three planes, or planes p-1, p, p+1 as colours",
    )
    mask_choice: Literal["single", "best", "consistent"] = Field(
        "consistent",
        description="sam, sam2: its single mask, of its three the one of best predicted IoU, or the best by predicted "
        "IoU x IoU with the plane before x ratio of areas",
    )
    box_prompt: bool = Field(False, description="sam, sam2: prompt with the box of the plane before, too")
    encode_batch: int = Field(8, ge=1, description="sam, sam2: planes encoded in one call")
    precision: Precision = Field(
        "auto",
        description="promptnet: auto is bf16 where the device computes with it, and fp32 elsewhere; sam, sam2: auto is "
        "bf16 on a GPU and fp32 on the CPU",
    )
    compile: bool = Field(
        False, description="sam, sam2: torch.compile of the image encoder, worth it for many tomograms"
    )
    iou_stop: float = Field(0.5, ge=0, le=1, description="tau_IoU: stop when adjacent masks agree less")
    presence_stop: float = Field(0.5, ge=0, le=1, description="stop when the segmenter thinks the object is absent")
    area_jump: float | None = Field(
        None, gt=1, description="stop when the mask's area changes by more than this factor from plane to plane"
    )
    area_rule: Literal["growth", "both"] = Field(
        "growth", description="area_jump: growing masks alone, or shrinking ones too (a ball shrinks at its poles)"
    )
    drift: float | None = Field(
        None, gt=0, description="stop when the mask's centroid moves further from plane to plane, in object radii"
    )
    score_drop: float | None = Field(
        None, gt=0, le=1, description="stop when the predicted IoU falls below this part of the prompted plane's"
    )
    missed_planes: int = Field(
        0, ge=0, le=8, description="planes in a row that may break a rule before the walk stops; they stay empty"
    )
    extent: float = Field(1.5, gt=0, le=2, description="cap along the axis, in object diameters")
    fuse: Literal["vote", "union"] = Field("vote", description="2-of-3 vote of the axes, or the paper's union")
    slab: int = Field(
        2,
        ge=0,
        le=2,
        description="promptnet: planes on each side of the prompted one that a prompt tells of, too, "
        "a 48th of the window apart, or a voxel; seeds are prompted plane by plane",
    )
    batch: int = Field(128, ge=1, description="prompts decoded in one call")


class MatchingSettings(_Settings):
    """How the query is matched through the tomogram (eqs. 4 to 6)."""

    strategy: Literal["exhaustive", "hierarchical"] = "exhaustive"
    ratios: tuple[int, ...] = Field((16, 8, 4), description="downsampling ratios of the hierarchy, in voxels")

    @field_validator("ratios")
    @classmethod
    def _coarse_to_fine(cls, ratios: tuple[int, ...]) -> tuple[int, ...]:
        if not ratios or ratios[-1] < 1 or list(ratios) != sorted(set(ratios), reverse=True):
            raise ValueError("expected whole numbers from coarse to fine, such as 16, 8, 4")
        return ratios

    similarity_threshold: float = Field(0.5, ge=-1, le=1, description="tau_sim, at every level")
    whitening: Literal["none", "mean", "full"] = Field(
        "none", description="embednet, fake: background statistics taken off the features before the cosine"
    )
    prototypes: int = Field(
        1, ge=1, le=16, description="features that may stand for the object, where its seeds disagree; 1: their mean"
    )
    prototype_similarity: float = Field(
        0.8, ge=-1, le=1, description="prototypes: seeds of a higher cosine than this agree"
    )
    max_proposals: int = Field(512, ge=1, description="K: the best proposals that are segmented")
    smoothing: float = Field(0.27, gt=0, le=2, description="width of the average over the map, in object radii")
    nms_radius: float = Field(1.0, gt=0, le=4, description="radius of non-maximum suppression, in object radii")


class AlignmentSettings(_Settings):
    """The second look: how candidates are turned against the seeds."""

    second_look: bool | None = Field(
        None, description="none: where encoder and matching are those that its ranking was learned with"
    )
    rotations: int = Field(1500, ge=24, le=20_000, description="orientations tried, spread evenly")
    limit: float = Field(6.0, ge=2, le=12, description="highest frequency compared, cycles per box of 3.2 radii")
    shift: int = Field(1, ge=0, le=3, description="shifts tried along each axis, samples of 0.128 radii")
    refinements: int = Field(
        3, ge=0, le=8, description="times the steps of rotations and shifts are halved for the picks that are kept"
    )
    candidates: int = Field(
        600,
        ge=8,
        description="at most so many proposals of a tomogram are looked at again, a quarter of them as context",
    )
    company: int = Field(
        2, ge=0, le=20, description="other tomograms of a job whose candidates compete with those of each for averages"
    )
    precision: Precision = Field(
        "auto", description="in which poses are searched; auto: bf16 where the device computes with it"
    )
    tilt_range: tuple[float, float] | None = Field(
        None, description="degrees, least and greatest; none: estimated from the tomogram's power spectrum"
    )
    tilt_axis: Literal["y", "x"] | None = Field(None, description="none: estimated like tilt_range")

    @field_validator("tilt_range")
    @classmethod
    def _least_to_greatest(cls, tilts: tuple[float, float] | None) -> tuple[float, float] | None:
        if tilts is not None and not -90 <= tilts[0] < tilts[1] <= 90:
            raise ValueError("expected two angles from -90 to 90, the lower first, such as -60, 60")
        return tilts


class InstanceSettings(_Settings):
    """Which segmented instances are kept."""

    size_range: tuple[float, float] = Field(
        (0.25, 4.0),
        description="allowed voxel count, as multiples of the median over the seeds and the ten best instances",
    )

    @field_validator("size_range")
    @classmethod
    def _low_to_high(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= bounds[0] < bounds[1]:
            raise ValueError("expected two factors, the lower first, such as 0.25, 4")
        return bounds

    rank_by: Literal["similarity", "product"] = Field(
        "similarity", description="a pick's score: its similarity, or similarity x mask confidence"
    )
    duplicate_radius: float = Field(1.0, gt=0, le=4, description="two picks closer than this are one, in object radii")
    min_precision: float | None = Field(
        None, ge=0, le=1, description="keep picks of at least this expected precision; none: the best expected F1"
    )
    max_picks: int | None = Field(None, ge=1, description="at most this many picks per tomogram")


class Settings(_Settings):
    """How to pick: one object for the whole pipeline."""

    preset: str = "embedded"
    encoder: EncoderSettings = EncoderSettings()
    segmenter: SegmenterSettings = SegmenterSettings()
    matching: MatchingSettings = MatchingSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    instances: InstanceSettings = InstanceSettings()
    polarity: Polarity = "auto"
    device: Device = "auto"

    @property
    def looks_again(self) -> bool:
        """Whether candidates get a second look."""
        return self._learned if self.alignment.second_look is None else self.alignment.second_look

    @property
    def _learned(self) -> bool:
        matching = self.matching
        return self.encoder.name == "embednet" and (matching.strategy, matching.whitening) == ("exhaustive", "none")

    @model_validator(mode="after")
    def _second_look_knows_its_scores(self) -> Settings:
        if self.alignment.second_look and not self._learned:
            raise ValueError(
                "alignment.second_look: expected the encoder embednet, exhaustive matching and no whitening, "
                f"with which its ranking was learned, found {self.encoder.name}, {self.matching.strategy} matching "
                f"and {self.matching.whitening} whitening"
            )
        return self


PRESETS: dict[str, Settings] = {
    "embedded": Settings(),
    "foundation": Settings(
        preset="foundation",
        encoder=EncoderSettings(name="dinov2-reg-large", whitening="full"),
        segmenter=SegmenterSettings(name="sam"),
    ),
    "paper": Settings(
        preset="paper",
        encoder=EncoderSettings(name="dinov2-reg-large", longest_side=518, stride=4),
        segmenter=SegmenterSettings(
            name="sam", model="vit_h", padding="square", mask_choice="best", extent=2.0, fuse="union"
        ),
        matching=MatchingSettings(strategy="hierarchical"),
        # All K proposals are kept, whatever their size.
        instances=InstanceSettings(size_range=(0, 1e9), rank_by="product", min_precision=0),
    ),
    "fake": Settings(preset="fake", encoder=EncoderSettings(name="fake"), segmenter=SegmenterSettings(name="fake")),
}
"""The presets by name.

`embedded` needs no download. `foundation` is SAM and DINOv2 at the tomogram's own resolution, with this package's
improvements; `paper` is SAM and DINOv2 with the choices of the CryoSAM paper. `fake` needs no weights and serves
the tests.
"""


def preset(name: str) -> Settings:
    """The settings of a preset.

    Raises
    ------
    InputError
        There is no such preset; the message names the ones there are.
    """
    return named_preset(name, PRESETS)


def named_preset(name: str, presets: Mapping[str, AnySettings]) -> AnySettings:
    """One of any presets; see `preset`."""
    try:
        return presets[name]
    except KeyError:
        raise InputError(
            f"preset: expected one of {', '.join(sorted(presets))}, found {name!r}", hint="Choose one of these presets"
        ) from None


def load_settings(path: str | Path, base: AnySettings) -> AnySettings:
    """Read a YAML file of settings over `base`; what the file leaves out stays as in `base`.

    Raises
    ------
    InputError
        The file is missing, no YAML mapping, or holds an unknown or impossible value; the message names the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"settings file {path}: {error.strerror}", hint="Give the path of a YAML file") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"settings file {path}: not YAML ({line})", hint="Correct the file") from None
    if not isinstance(values, dict):
        raise InputError(f"settings file {path}: expected a mapping, found {type(values).__name__}", hint="See README")
    return override(base, values)


def override(base: AnySettings, values: dict[str, object]) -> AnySettings:
    """`base` with nested `values` put over it, validated as a whole."""
    merged = _merge(base.model_dump(), values)
    try:
        return type(base).model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            # a rule about several settings names them, and what it found, itself
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(f"setting {message}", hint="Leave it out, or change the others") from None
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"setting {field}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}",
            hint=f"Known here: {', '.join(_known(type(base), first['loc']))}"
            if first["type"] == "extra_forbidden"
            else "Give a value that fits; the README has an example of a settings file",
        ) from None


def _known(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The names of the settings of `model` beside the one at `where`."""
    for part in where[:-1]:
        found = model.model_fields[str(part)].annotation
        assert isinstance(found, type)
        model = found
    return list(model.model_fields)


def _merge(base: dict[str, object], values: dict[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
