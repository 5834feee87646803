"""Encoders turn a tomogram into features that can be pooled and compared (eq. 3).

A backend is a module with a factory, named in `_BACKENDS` and imported on use.
"""

from __future__ import annotations

from typing import Protocol

import torch

from copick_cryosam.config import EncoderSettings
from copick_cryosam.features import Features
from copick_cryosam.registry import create
from copick_cryosam.types import Progress, Volume

__all__ = ["Encoder", "available_encoders", "load_encoder"]


class Encoder(Protocol):
    """What every encoder offers."""

    name: str
    signature: str
    """Identifies weights and version; embeddings with another signature are not comparable."""

    def encode(
        self, volume: Volume, *, voxel_spacing: float | None = None, progress: Progress | None = None
    ) -> Features:
        """Features of a whole tomogram.

        Parameters
        ----------
        volume : shape (Z, Y, X)
            Standardised (mean 0, standard deviation 1), particles brighter than their surroundings.
        voxel_spacing : Å
            None: the spacing that the encoder was made for; nothing is resampled.
        """
        ...


_BACKENDS = {
    "embednet": "copick_cryosam.encoders.embednet:load",
    "fake": "copick_cryosam.encoders.fake:load",
}


def available_encoders() -> list[str]:
    """Names that `load_encoder` knows."""
    return sorted(_BACKENDS)


def load_encoder(settings: EncoderSettings, device: torch.device) -> Encoder:
    """The encoder that the settings name, on `device`.

    Raises
    ------
    InputError
        No such encoder; the message names the ones there are.
    """
    loaded: Encoder = create("encoder", _BACKENDS, settings.name, settings, device)
    return loaded
