"""Particles of every class in a tomogram, with a trained detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.batching import Batches
from copick_cryosam.config import Device
from copick_cryosam.contrast import brighten, check, standardise
from copick_cryosam.devices import computing_in, fastest_dtype, resolve_device
from copick_cryosam.errors import DataError, InputError
from copick_cryosam.sasi.components import WHOLE, find_particles
from copick_cryosam.sasi.model import SasiModel, load_model
from copick_cryosam.sasi.settings import InferenceSettings
from copick_cryosam.sasi.stitching import stitch
from copick_cryosam.types import Instance, Progress, Volume

__all__ = ["SPACING_TOLERANCE", "Detection", "Sasi", "check_spacing"]

SPACING_TOLERANCE = 0.01
"""Relative difference of a tomogram's voxel spacing from the model's that is taken for none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """What was found in one tomogram.

    Attributes
    ----------
    labels : class of each voxel, 0 is background and class k is k; only of voxels that belong to a particle; shape
        (Z, Y, X)
    particles : by class name, in the order of the model's classes; each best first, its score the mean probability
        of the class over its voxels
    """

    labels: NDArray[np.uint8]
    particles: dict[str, list[Instance]]


def check_spacing(expected: float, found: float) -> None:
    """Refuse tomograms of another voxel spacing (Å) than a model's with an `InputError`."""
    # Written so that a NaN is refused.
    if not abs(found - expected) <= SPACING_TOLERANCE * expected:
        raise InputError(
            f"voxel spacing: expected {expected:g} Å, which the model was trained at, found {found:g} Å",
            hint="Choose the tomogram of that voxel spacing, or train a model for this one",
        )


class Sasi:
    """A trained detector, ready to find particles.

    Parameters
    ----------
    model : its net on `device`
    inference : in place of the model's own settings of this kind
    """

    def __init__(self, model: SasiModel, device: torch.device, inference: InferenceSettings | None = None) -> None:
        self.model = model
        self.device = device
        self.settings = inference or model.settings.inference
        self._dtype = fastest_dtype(model.settings.training.precision, device)
        # a tenth to a quarter faster on the CPU
        self._net = model.network.to(device).eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @classmethod
    def load(cls, path: str | Path, device: Device = "auto", inference: InferenceSettings | None = None) -> Sasi:
        """A saved detector; its errors, see `load_model`.

        Raises
        ------
        DeviceError
            CUDA was asked for and is not available.
        """
        where = resolve_device(device)
        return cls(load_model(path, where), where, inference)

    def detect(self, volume: Volume, voxel_spacing: float | None = None, progress: Progress | None = None) -> Detection:
        """Find the particles of every class.

        Probabilities of half-overlapping windows are averaged, each voxel gets the class of the greatest, and
        the connected components of a class are its particles, see `find_particles`.

        Parameters
        ----------
        volume : a tomogram as it is, shape (Z, Y, X)
        voxel_spacing : of the volume, Å; None: the model's
        progress : told of the windows done

        Raises
        ------
        InputError
            The voxel spacing differs from the model's by more than 1%.
        DataError
            The volume cannot be searched, see `contrast.check`; or the net gives no numbers.
        DeviceError
            Memory ran out.
        """
        if voxel_spacing is not None:
            check_spacing(self.model.voxel_spacing, voxel_spacing)
        whole = np.asarray(volume[:, :, :], dtype=np.float32)
        check(whole)
        prepared = brighten(standardise(whole), self.model.polarity)
        del whole
        labels, probability = self._classify(prepared, progress)
        del prepared
        classes = self.model.classes
        radii = [self.model.label_radius(one) for one in classes]
        found = find_particles(labels, probability, radii, self.settings)
        names = (one.name for one in classes)
        return Detection(labels=labels, particles=dict(zip(names, found, strict=True)))

    def _classify(
        self, prepared: NDArray[np.float32], progress: Progress | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """The class of each voxel, and its probability in parts of `WHOLE`."""
        labels = np.empty(prepared.shape, dtype=np.uint8)
        probability = np.empty(prepared.shape, dtype=np.uint16)
        slabs = stitch(
            prepared,
            self._predict,
            len(self.model.classes) + 1,
            self.model.window,
            Batches(self.settings.batch, "windows", "inference.batch"),
            self.device,
            centred=self.settings.centre_weighting,
            progress=progress,
        )
        for planes, maps in slabs:
            greatest, winner = maps.max(dim=0)
            if not bool(torch.isfinite(greatest).all()):
                raise DataError(
                    "model: expected probabilities, found NaN", hint="Train it again, with a lower learning rate"
                )
            labels[planes] = winner.to(torch.uint8).cpu().numpy()
            # The mean of probabilities may exceed 1 by rounding.
            probability[planes] = (greatest.clamp(0, 1) * WHOLE).round_().to(torch.int32).cpu().numpy()
        return labels, probability

    @torch.inference_mode()
    def _predict(self, windows: Tensor) -> Tensor:
        with computing_in(self._dtype, self.device):
            logits = self._net(windows)
        return torch.softmax(logits.float(), dim=1)
