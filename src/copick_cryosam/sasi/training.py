"""Train a detector from a few points (SaSi): supervised, filled windows, consistency, and self-supervision.

One step is: windows around labelled points, the classes in turn, filled with copies of themselves; Dice and focal
loss; the same net on the windows once more, moved, has to say what it said before, moved. Self-supervised steps come
first (ISS) or in turn with these (PSS). Consistency belongs to both phases in the paper; here its weight rises with
the supervised steps, so that it is 0 while the net has not learned to say anything yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from copick_cryosam.devices import computing_in, fastest_dtype
from copick_cryosam.errors import DataError, InputError
from copick_cryosam.sasi import checkpoint as saved
from copick_cryosam.sasi.held_out import held_out_loss, split
from copick_cryosam.sasi.losses import consistency, dice_focal
from copick_cryosam.sasi.networks import Network, load_network
from copick_cryosam.sasi.points import ParticleClass, TrainingTomogram
from copick_cryosam.sasi.self_supervision import ContrastiveHead, contrastive_loss
from copick_cryosam.sasi.settings import SasiSettings
from copick_cryosam.sasi.spatial import Spatial
from copick_cryosam.sasi.windows import Cutter
from copick_cryosam.types import Progress

_MOST_SKIPPED = 5
"""Steps in a row whose gradients may be no numbers."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """What a training gave.

    Attributes
    ----------
    network : on the training's device, in evaluation mode, as it was at `best_step`
    curve : one entry each `training.check_every` steps, and at the end: phase, step, mean losses since the entry
        before (loss, supervised, consistency, contrastive, those that were computed), and held_out where there are
        held-out points
    best_step : supervised steps made when the held-out loss was least; all of them without held-out points
    stopped_early : whether `training.patience` ended it
    held_out : (tomogram, point) of the held-out ones
    """

    network: Network
    curve: list[dict[str, Any]]
    best_step: int
    stopped_early: bool
    held_out: list[tuple[int, int]]


def train(
    tomograms: Sequence[TrainingTomogram],
    classes: Sequence[ParticleClass],
    settings: SasiSettings,
    device: torch.device,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train from all points of the tomograms; see `points.choose_shots` to take a few.

    Parameters
    ----------
    checkpoint : folder in which the state is kept, and from which a training that was killed goes on to the same
        result; remove it (`checkpoint.remove`) when what was trained is safe. None: no state is kept

    Raises
    ------
    InputError
        The checkpoint is of another training, a tomogram is smaller than a window, or the window does not fit the net.
    DataError
        The loss is no number any more.
    """
    return _Training(tomograms, classes, settings, device, checkpoint, progress).all()


class _Training:
    """A training under way."""

    def __init__(
        self,
        tomograms: Sequence[TrainingTomogram],
        classes: Sequence[ParticleClass],
        settings: SasiSettings,
        device: torch.device,
        checkpoint: Path | None,
        progress: Progress | None,
    ) -> None:
        self.settings, self.device, self.folder, self.progress = settings, device, checkpoint, progress
        plan, ssl = settings.training, settings.self_supervision
        self.dtype = fastest_dtype(plan.precision, device)
        self.network = load_network(settings, len(classes)).to(device).train()
        # convolutions are a tenth to a fifth faster so on a CPU
        self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        _check_sizes(tomograms, self.network.window)
        self.split = split(tomograms, classes, plan)
        self.cutter = Cutter(self.split.tomograms, classes, settings, self.network.window, device)
        # with the labels of all points, also of the held-out ones
        self.held_out = Cutter(tomograms, classes, settings, self.network.window, device).around(self.split.held_out)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.optimiser = torch.optim.Adam(_groups(self.network, settings, plan.learning_rate), lr=plan.learning_rate)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.head: ContrastiveHead | None = None
        self.before = 0
        if ssl.mode != "none":
            self.head = ContrastiveHead(self.network.embedding, ssl, plan.seed).to(device)
            both = [*_groups(self.network, settings, ssl.learning_rate), {"params": list(self.head.parameters())}]
            self.ssl_optimiser = torch.optim.Adam(both, lr=ssl.learning_rate)
        if ssl.mode == "iss":
            self.before = ssl.steps or max(1, round(ssl.share * plan.steps))
        self.fingerprint = saved.fingerprint(tomograms, classes, settings, device)
        self.step = 0
        """Steps made, the self-supervised ones before the supervised included."""
        self.curve: list[dict[str, Any]] = []
        self.sums: dict[str, list[float]] = {}
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_step = math.inf, 0
        self.skipped = 0

    @property
    def total(self) -> int:
        """Steps to make, if nothing ends them early."""
        return self.before + self.settings.training.steps

    def all(self) -> Trained:
        """Every step that is left."""
        self._resume()
        while self.step < self.total and not self._patience_is_over():
            if self.step < self.before:
                self._learn_from_views()
            else:
                self._learn_from_labels(self.step - self.before)
                if self.settings.self_supervision.mode == "pss":
                    self._learn_from_views()
            self.step += 1
            if self.step % self.settings.training.check_every == 0 or self.step in (self.before, self.total):
                self._check()
            if self.progress is not None:
                self.progress("train", self.step, self.total)
        if self.best is not None:
            self.network.load_state_dict(self.best)
        made = self.step - self.before
        return Trained(
            network=self.network.eval(),
            curve=self.curve,
            best_step=made if self.best is None else self.best_step,
            stopped_early=self.step < self.total,
            held_out=self.split.held_out,
        )

    def _learn_from_labels(self, done: int) -> None:
        """One supervised step, with consistency; `done` were made before."""
        settings, plan = self.settings, self.settings.training
        _set_rates(self.optimiser, self.rates, done, plan.steps)
        windows = self.cutter.labelled(plan.batch, self.generator)
        with computing_in(self.dtype, self.device):
            logits = self.network(windows.volume)
        supervised = dice_focal(logits, windows.labels, windows.weights, settings.loss)
        loss = supervised
        self._note("supervised", supervised)
        if settings.consistency.enabled:
            ramp = settings.consistency.ramp * plan.steps
            share = min(1.0, (done + 1) / ramp) if ramp else 1.0
            agreement = self._consistency(windows.volume, logits.detach())
            loss = loss + settings.consistency.weight * share * agreement
            self._note("consistency", agreement)
        self._note("loss", loss)
        self._descend(self.optimiser, loss)

    def _consistency(self, volume: Tensor, logits: Tensor) -> Tensor:
        """Self-interpreted consistency between T of the prediction and the prediction on T of the window."""
        edge = self.network.window
        moves = Spatial.draw(len(volume), self.settings.augment, edge, self.generator)
        with computing_in(self.dtype, self.device):
            again = self.network(moves.apply(volume))
        inside = moves.inside((edge, edge, edge)).to(self.device)
        return consistency(again, moves.apply(logits.float()), inside, self.settings.loss)

    def _learn_from_views(self) -> None:
        """One self-supervised step."""
        assert self.head is not None
        views = self.cutter.views(self.settings.training.batch, self.generator)
        with computing_in(self.dtype, self.device):
            loss = contrastive_loss(self.network, self.head, views, self.settings.self_supervision)
        self._note("contrastive", loss)
        self._descend(self.ssl_optimiser, loss)

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.training.clip)
        # oneDNN's bf16 convolutions now and then give a gradient that is no number; one such step is left out
        self.skipped = 0 if bool(torch.isfinite(norm)) else self.skipped + 1
        if self.skipped == 0:
            optimiser.step()
        elif self.skipped > _MOST_SKIPPED:
            raise DataError(
                f"training: expected finite gradients, found none in {self.skipped} steps up to step {self.step}",
                hint="Lower training.learning_rate, or choose training.precision fp32",
            )

    def _note(self, name: str, loss: Tensor) -> None:
        self.sums.setdefault(name, []).append(float(loss.detach()))

    def _check(self) -> None:
        """Write down the losses, look at the held-out points, keep the state."""
        supervised = self.step > self.before
        entry: dict[str, Any] = {"phase": "supervised" if supervised else "self-supervised", "step": self.step}
        entry |= {name: sum(each) / len(each) for name, each in self.sums.items()}
        self.sums = {}
        wrong = [name for name, value in entry.items() if name not in ("phase", "step") and not math.isfinite(value)]
        if wrong:
            raise DataError(
                f"training: expected finite losses, found {entry[wrong[0]]} as {wrong[0]} loss at step {self.step}",
                hint="Lower training.learning_rate, or choose training.precision fp32",
            )
        if supervised and self.split.held_out:
            with computing_in(self.dtype, self.device):
                entry["held_out"] = held_out_loss(self.network, self.held_out)
            if entry["held_out"] < self.best_loss:
                self.best_loss, self.best_step = entry["held_out"], self.step - self.before
                self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.curve.append(entry)
        if self.folder is not None:
            self._keep(self.folder)

    def _patience_is_over(self) -> bool:
        patience = self.settings.training.patience
        if patience is None:
            return False
        looks = [entry["held_out"] for entry in self.curve if "held_out" in entry]
        return len(looks) - 1 - looks.index(min(looks)) >= patience if looks else False

    def _keep(self, folder: Path) -> None:
        tensors = {
            **saved.module_tensors("network", self.network),
            **saved.optimiser_tensors("optimiser", self.optimiser),
            **{f"best.{name}": tensor for name, tensor in (self.best or {}).items()},
            "generator": self.generator.get_state(),
        }
        if self.head is not None:
            tensors |= saved.module_tensors("head", self.head)
            tensors |= saved.optimiser_tensors("ssl_optimiser", self.ssl_optimiser)
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "curve": self.curve,
            "best_step": self.best_step,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
        }
        saved.save(folder, tensors, state)

    def _resume(self) -> None:
        found = None if self.folder is None else saved.load(self.folder, self.device)
        if found is None:
            return
        tensors, state = found
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"checkpoint {self.folder}: expected one of this training, found one of other settings or points",
                hint="Repeat the call that was interrupted, or train from the start with --no-resume",
            )
        saved.restore_module("network", self.network, tensors)
        saved.restore_optimiser("optimiser", self.optimiser, tensors)
        if self.head is not None:
            saved.restore_module("head", self.head, tensors)
            saved.restore_optimiser("ssl_optimiser", self.ssl_optimiser, tensors)
        best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        self.best = best or None
        self.generator.set_state(tensors["generator"].cpu())
        self.step, self.curve, self.best_step = state["step"], state["curve"], state["best_step"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]


def _groups(network: Network, settings: SasiSettings, rate: float) -> list[dict[str, Any]]:
    """Weights to start from random values, and those that were learned before, which move less."""
    learned = {id(p) for p in network.learned()} if settings.init != "none" else set()
    groups = [
        {"params": [p for p in network.parameters() if id(p) not in learned], "lr": rate},
        {"params": [p for p in network.parameters() if id(p) in learned], "lr": rate * settings.training.learned_rate},
    ]
    return [group for group in groups if group["params"]]


def _set_rates(optimiser: torch.optim.Optimizer, rates: Sequence[float], done: int, steps: int) -> None:
    """Along a cosine to zero."""
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / steps))


def _check_sizes(tomograms: Sequence[TrainingTomogram], window: int) -> None:
    for one in tomograms:
        if min(one.volume.shape) < window:
            raise InputError(
                f"run {one.name}: expected at least {window} voxels along each axis, found {one.volume.shape}",
                hint="Set a smaller window in the --settings file, or take other runs",
            )
