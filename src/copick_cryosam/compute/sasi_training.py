"""Training a detector from the points of a project, and keeping it with the record of what it learned from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from copick_cryosam.compute.faults import naming, telling_memory
from copick_cryosam.compute.outcomes import Listener, Outcome
from copick_cryosam.compute.sasi_points import RunPoints, gather, recorded, select
from copick_cryosam.compute.seeds import agreed
from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.io.project import open_project
from copick_cryosam.io.sasi_job import TrainingJob
from copick_cryosam.io.storage import reason
from copick_cryosam.sasi.points import ParticleClass, TrainingTomogram
from copick_cryosam.sasi.settings import SasiSettings
from copick_cryosam.types import FloatArray, VoxelPoints

if TYPE_CHECKING:
    import torch

__all__ = ["Learned", "LearnedFrom", "checkpoint_folder", "plan_training", "run_training"]

_CLEAR = 4.0
"""Standard errors by which one run's points show a polarity that another run's must not contradict."""


@dataclass(frozen=True, kw_only=True)
class LearnedFrom:
    """One run: the shape of its tomogram (z, y, x), and how many points of each object, by name, are used in it.

    Attributes
    ----------
    human : that a person vouches for
    pseudo : from picks of a program
    """

    run: str
    shape_zyx: tuple[int, int, int]
    human: Mapping[str, int]
    pseudo: Mapping[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Learned:
    """What became of a training.

    Attributes
    ----------
    model : the model's file
    runs : what was learned from
    polarity : how particles look in the tomograms, dark or light
    curve : of the training, see `sasi.training.Trained`; None for what was not measured
    stopped_early : as held-out points were not known better any more
    """

    model: Path
    runs: tuple[LearnedFrom, ...]
    polarity: str
    curve: list[dict[str, Any]]
    stopped_early: bool

    @property
    def kept(self) -> dict[str, Any]:
        """The entry of the curve whose weights were kept: the best on held-out points, the last without such."""
        looks = [row for row in self.curve if row.get("held_out") is not None]
        return min(looks, key=lambda row: float(row["held_out"])) if looks else self.curve[-1]


def checkpoint_folder(job: TrainingJob) -> Path:
    """Where the state of a training is kept until it ends, beside the model: a killed one goes on from there."""
    from copick_cryosam.sasi.model import model_paths

    return model_paths(job.model)[0].with_suffix(".training")


def plan_training(job: TrainingJob, settings: SasiSettings) -> tuple[LearnedFrom, ...]:
    """What `run_training` would learn from, after the same checks. Nothing is written and no voxel is read.

    Raises
    ------
    CryosamError
        The training is impossible.
    """
    return _Work(job, settings, Listener()).learned_from()


def run_training(
    job: TrainingJob, settings: SasiSettings, listener: Listener | None = None, *, resume: bool = True
) -> Learned:
    """Train a detector and write it.

    Everything that can be refused is refused before a tomogram is read. All tomograms that are learned from are in
    memory together.

    Parameters
    ----------
    resume : go on from what a killed training of this model left; otherwise that is removed

    Raises
    ------
    CryosamError
        The training is impossible: project, objects, points, tomograms, device, settings or the model's place; or
        what was left is of another training.
    """
    work = _Work(job, settings, listener or Listener())
    kept = checkpoint_folder(job)
    if not resume:
        from copick_cryosam.sasi import checkpoint

        try:
            checkpoint.remove(kept)
        except OSError as error:
            raise OutputError(
                f"checkpoint {kept}: expected a folder that can be removed, found: {reason(error)}",
                hint="Remove it, or choose another name for the model",
            ) from None
    return work.train(kept)


class _Work:
    """A training with its project open and its points read."""

    def __init__(self, job: TrainingJob, settings: SasiSettings, listener: Listener) -> None:
        from copick_cryosam.devices import resolve_device
        from copick_cryosam.sasi.model import check_place
        from copick_cryosam.sasi.networks import load_network

        self.job, self.settings, self.listener = job, settings, listener
        check_place(job.model, overwrite=job.overwrite)
        self.device: torch.device = resolve_device(settings.device)
        window = load_network(settings, len(job.objects)).window
        self.project = open_project(job.config)
        objects = [self.project.object(name) for name in job.objects]
        gathered = gather(self.project, job)
        self.grids = {run: one.grid for run, one in gathered.items()}
        self.spacing = next(iter(self.grids.values())).voxel_spacing
        self.classes = tuple(ParticleClass(name=one.name, radius_vox=one.radius / self.spacing) for one in objects)
        _check_windows(gathered, window)
        self.unread = select(gathered, self.classes, settings.training.shots, settings.training.seed)

    def learned_from(self) -> tuple[LearnedFrom, ...]:
        """By run, what is learned from it."""
        found = []
        for one in self.unread:
            some, sure = one.labelled.classes, one.labelled.weights >= 1
            human, pseudo = (
                {each.name: int((some[which] == k).sum()) for k, each in enumerate(self.classes, start=1)}
                for which in (sure, ~sure)
            )
            found.append(
                LearnedFrom(run=one.name, shape_zyx=self.grids[one.name].shape_zyx, human=human, pseudo=pseudo)
            )
        return tuple(found)

    def train(self, checkpoint: Path) -> Learned:
        """Read, learn, write."""
        from copick_cryosam.contrast import brighten
        from copick_cryosam.sasi import checkpoint as saved
        from copick_cryosam.sasi.model import SasiModel, save_model
        from copick_cryosam.sasi.training import train

        self.listener.begun(len(self.unread))
        tomograms = [self._read(one) for one in self.unread]
        polarity = self._polarity(tomograms)
        for one in tomograms:
            brighten(one.volume, polarity)
        began = time.perf_counter()
        with telling_memory(
            "training: expected enough {} for its batches",
            f"Lower training.batch (now {self.settings.training.batch}) in a --settings file",
        ):
            trained = train(
                tomograms,
                self.classes,
                self.settings,
                self.device,
                checkpoint=checkpoint,
                progress=self.listener.progress,
            )
        curve = [{name: _finite(value) for name, value in row.items()} for row in trained.curve]
        model = SasiModel(
            network=trained.network,
            settings=self.settings,
            classes=self.classes,
            voxel_spacing=self.spacing,
            polarity=polarity,
            training={
                "job": self.job.identity(),
                "points": recorded(tomograms, self.classes, self.grids, trained.held_out),
                "unlabelled_runs": [one.name for one in tomograms if not len(one.labelled)],
                "curve": curve,
                "best_step": trained.best_step,
                "device": str(self.device),
                "seconds": round(time.perf_counter() - began, 1),
            },
        )
        path = save_model(self.job.model, model)
        saved.remove(checkpoint)
        return Learned(
            model=path,
            runs=self.learned_from(),
            polarity=polarity,
            curve=curve,
            stopped_early=trained.stopped_early,
        )

    def _read(self, one: TrainingTomogram) -> TrainingTomogram:
        """The tomogram with its volume, standardised; bright or dark as it is."""
        from copick_cryosam.contrast import standardise

        self.listener.run_started(one.name, "learn")
        began = time.perf_counter()
        with naming(one.name, self.settings):
            volume = self.project.tomogram(one.name, self.job.tomogram)
            data = volume.read(partial(self.listener.progress, "read"))
            prepared = replace(one, volume=standardise(data))
        self.listener.run_ended(Outcome(run=one.name, state="done", seconds=time.perf_counter() - began))
        return prepared

    def _polarity(self, tomograms: list[TrainingTomogram]) -> Literal["dark", "light"]:
        """Whether particles are dark or light, from what a person's points of all classes and runs show together.

        Raises
        ------
        SeedError
            Runs clearly contradict each other or what was told, or nothing shows.
        """
        from copick_cryosam.contrast import judge_polarity, seed_contrast

        shown = [
            (one, points, radius, seed_contrast(one.volume, points, radius))
            for one in tomograms
            for points, radius in self._seeds(one)
        ]
        by_run = {
            one.name: _together([each for of, _, _, each in shown if of is one])
            for one in tomograms
            if any(of is one for of, _, _, _ in shown)
        }
        clear = {run: value for run, (value, error) in by_run.items() if abs(value) > _CLEAR * error}
        if clear:
            agreed(
                {run: "light" if value > 0 else "dark" for run, value in clear.items()},
                hint="Leave runs out with -r, or invert their tomograms",
            )

        def recognised() -> tuple[float, float] | None:
            from copick_cryosam.config import EncoderSettings
            from copick_cryosam.encoders import load_encoder
            from copick_cryosam.polarity import foreground_both_ways

            encoder = load_encoder(EncoderSettings(), self.device)
            shares = [
                foreground_both_ways(one.volume, points, radius, encoder, self.spacing)
                for one, points, radius, _ in shown
            ]
            known = [(pair, len(points)) for pair, (_, points, _, _) in zip(shares, shown, strict=True) if pair]
            if not known:
                return None
            bright, dark = np.average([pair for pair, _ in known], axis=0, weights=[count for _, count in known])
            return float(bright), float(dark)

        return judge_polarity(_together([each for _, _, _, each in shown]), self.settings.polarity, recognised)

    def _seeds(self, one: TrainingTomogram) -> list[tuple[VoxelPoints, float]]:
        """The points of a person in a tomogram and the radius in voxels, for each class that has some."""
        some, found = one.labelled, []
        for number, each in enumerate(self.classes, start=1):
            mine: FloatArray = some.points.zyx[(some.classes == number) & (some.weights >= 1)]
            if len(mine):
                found.append((VoxelPoints(mine), each.radius_vox))
        return found


def _check_windows(gathered: Mapping[str, RunPoints], window: int) -> None:
    for run, one in gathered.items():
        if min(one.grid.shape_zyx) < window:
            raise InputError(
                f"run {run}: expected at least {window} voxels along each axis, the edge of the windows, found "
                f"{one.grid.shape_zyx} (z, y, x)",
                hint="Set window to less in a --settings file, choose another --architecture, or leave the run out "
                "with -r",
            )


def _together(evidence: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean contrast, each weighted by its certainty, and the standard error of that."""
    certainty = np.array([error**-2.0 for _, error in evidence])
    mean = float((certainty * [value for value, _ in evidence]).sum() / certainty.sum())
    return mean, float(certainty.sum() ** -0.5)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
