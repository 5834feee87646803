"""Settings of SaSi, in one object: how a detector is trained from a few points, and how it is used.

What the paper leaves open (loss weights beside Dice and focal, optimiser, schedules, shapes of the transforms) is a
field here, with the choice made as its default. They are saved whole with every model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from copick_cryosam.config import Device, Polarity, Precision, load_settings, named_preset, override


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LabelSettings(_Settings):
    """Points become spheres."""

    radius: float = Field(
        0.7,
        gt=0,
        le=2,
        description="radius of a point's sphere, in object radii; whole ones touch in crowded tomograms",
    )
    min_radius: float = Field(2.0, gt=0, le=16, description="least radius of a sphere, voxels")
    ignore_unlabelled: bool = Field(
        False,
        description="learn nothing from voxels far from every labelled point, where unlabelled particles may lie; "
        "otherwise they are background",
    )
    near: float = Field(
        2.0,
        ge=1,
        le=16,
        description="ignore_unlabelled: background reaches this far around a point, in its sphere's radii",
    )


class AugmentSettings(_Settings):
    """The random rigid transforms of training windows, views, infill and consistency."""

    shift: float = Field(
        0.25, ge=0, le=0.5, description="largest shift along each axis, as a share of the window's edge"
    )
    rotation: Literal["any", "quarter", "beam", "none"] = Field(
        "any",
        description="any rotation, quarter turns about all axes (no interpolation), any rotation about the beam (z), "
        "or none",
    )
    flip: bool = Field(True, description="mirror each axis with a chance of one half")


class InfillSettings(_Settings):
    """Self-augmented volume infill: transformed copies of a window are mixed into it."""

    enabled: bool = False
    mode: Literal["mix", "paste"] = Field(
        "mix", description="average the window with its copies, as published, or put their particles into it"
    )
    chains: int = Field(3, ge=1, le=8, description="k: transformed copies")
    skip: float = Field(0.5, gt=0, lt=1, description="mix: weight of the window itself; its copies share the rest")
    alpha: float = Field(1.0, gt=0, le=100, description="mix: concentration of the Dirichlet weights of the copies")
    keep_noise: bool = Field(
        True, description="mix: scale it so that its noise is as strong as a tomogram's; averaging weakens it"
    )


class ConsistencySettings(_Settings):
    """Self-interpreted consistency: what is found in a transformed window is what is found, transformed."""

    enabled: bool = False
    weight: float = Field(
        0.1,
        gt=0,
        le=100,
        description="of this loss beside the supervised one; 1 keeps a net that finds nothing from finding anything",
    )
    ramp: float = Field(1.0, ge=0, le=1, description="share of the steps over which the weight rises from 0")


class SelfSupervisionSettings(_Settings):
    """SimCLR on unlabelled windows: two views of a window are close in features, views of others are not."""

    mode: Literal["none", "iss", "pss"] = Field(
        "none", description="none, before the supervised steps (iss), or alternating with them (pss)"
    )
    temperature: float = Field(0.1, gt=0, le=10, description="of the contrastive loss (NT-Xent)")
    width: int = Field(128, ge=2, le=4096, description="length of the vectors that are compared")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of Adam in these steps")
    steps: int | None = Field(None, ge=1, description="iss: steps; none: `share` of the supervised ones")
    share: float = Field(0.25, gt=0, le=10, description="iss: steps, as a share of the supervised ones")


class LossSettings(_Settings):
    """The supervised loss; consistency uses the same."""

    dice: float = Field(20.0, ge=0, le=1000, description="weight of the soft Dice loss over the foreground classes")
    focal: float = Field(1.0, ge=0, le=1000, description="weight of the focal loss")
    gamma: float = Field(2.0, ge=0, le=10, description="focal: how much less a voxel counts that is known already")

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> LossSettings:
        if self.dice == self.focal == 0:
            raise ValueError("expected a weight above 0 for dice or focal")
        return self


class TrainingSettings(_Settings):
    """The supervised steps."""

    steps: int = Field(200, ge=1, description="at most")
    batch: int = Field(8, ge=1, le=4096, description="windows per step, the classes taking turns")
    anywhere: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of the windows that are cut anywhere, not around a point: they show what is no particle, "
        "and particles that nobody labelled as if they were none",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of Adam, falling to zero along a cosine")
    learned_rate: float = Field(
        0.2, gt=0, le=1, description="init: learning rate of weights that were learned before, as a share of it"
    )
    clip: float = Field(10.0, gt=0, description="gradients of a larger norm are scaled down to it")
    check_every: int = Field(50, ge=1, description="steps between two looks at the held-out points")
    patience: int | None = Field(
        6, ge=1, description="stop after so many looks at the held-out points without a better one; none: never"
    )
    held_out: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of each class's points that is held out to know when to stop; 0: none, all steps are made",
    )
    held_out_from: int = Field(
        20,
        ge=2,
        description="points that a class needs for any to be held out: of a few, each is worth more in training",
    )
    shots: int | None = Field(None, ge=1, description="points used of each class, drawn by the seed; none: all")
    precision: Precision = Field("auto", description="auto is bf16 where the device computes with it, fp32 elsewhere")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random choice; two trainings of one seed are equal")


class InferenceSettings(_Settings):
    """Windows of the training's size slide by half of it; connected components of each class are its particles."""

    centre_weighting: bool = Field(True, description="a window's centre counts more than its border, or all the same")
    batch: int = Field(32, ge=1, le=4096, description="windows in one call")
    min_size: float = Field(
        0.25, ge=0, le=10, description="smaller components are dropped; as a share of the volume of a label's sphere"
    )
    min_score: float = Field(0.0, ge=0, le=1, description="particles of a lower mean probability are dropped")
    split: float | None = Field(
        1.5,
        gt=1,
        le=1000,
        description="components larger than this, in volumes of a label's sphere, are parted into their lumps, as "
        "particles that touch are one component; none: a component is a particle, as published",
    )


class SasiSettings(_Settings):
    """How to train a detector and how to use it."""

    architecture: Literal["deepfinder", "monai-unet", "embednet"] = Field(
        "embednet",
        description="the net: EmbedNet's trunk, DeepFinder's U-Net as published, or MONAI's residual U-Net",
    )
    init: Literal["none", "embednet"] = Field(
        "embednet", description="weights to start from: random ones, or those of the shipped EmbedNet"
    )
    window: int | None = Field(
        None, ge=8, le=256, description="edge of the windows, voxels; none: the architecture's own (32, 24, 24)"
    )
    labels: LabelSettings = LabelSettings()
    augment: AugmentSettings = AugmentSettings()
    infill: InfillSettings = InfillSettings()
    consistency: ConsistencySettings = ConsistencySettings()
    self_supervision: SelfSupervisionSettings = SelfSupervisionSettings()
    loss: LossSettings = LossSettings()
    training: TrainingSettings = TrainingSettings()
    inference: InferenceSettings = InferenceSettings()
    polarity: Polarity = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _weights_fit_the_net(self) -> SasiSettings:
        if self.init == "embednet" and self.architecture != "embednet":
            raise ValueError(f"init embednet: expected the architecture embednet, found {self.architecture}")
        return self


SASI_PRESETS: dict[str, SasiSettings] = {
    "embedded": SasiSettings(),
    "paper": SasiSettings(
        architecture="deepfinder",
        init="none",
        infill=InfillSettings(enabled=True),
        consistency=ConsistencySettings(enabled=True),
        self_supervision=SelfSupervisionSettings(mode="iss"),
        training=TrainingSettings(steps=2000, anywhere=0),
    ),
}
"""The presets by name: what was measured best, from the package's own encoder; and all parts of the SaSi paper on its
net, which starts from nothing and takes longer."""


def sasi_preset(name: str) -> SasiSettings:
    """The settings of a preset.

    Raises
    ------
    InputError
        There is no such preset; the message names the ones there are.
    """
    return named_preset(name, SASI_PRESETS)


def sasi_settings(source: str | Path | Mapping[str, Any], base: SasiSettings | None = None) -> SasiSettings:
    """Settings of a YAML file, or of a nested mapping, over `base`; what `source` leaves out stays as it is there.

    Raises
    ------
    InputError
        The file is missing, no YAML mapping, or a value is unknown or impossible; the message names the field.
    """
    base = SasiSettings() if base is None else base
    return override(base, dict(source)) if isinstance(source, Mapping) else load_settings(source, base)
