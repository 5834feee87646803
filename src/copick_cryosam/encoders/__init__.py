"""Encoders turn a tomogram into features that can be pooled and compared (eq. 3).

A backend is a module with a factory, named in `_BACKENDS` and imported on use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from copick_cryosam.config import EncoderSettings
from copick_cryosam.errors import InputError
from copick_cryosam.features import Features
from copick_cryosam.foundation.catalogue import TRANSFORMERS
from copick_cryosam.registry import create
from copick_cryosam.types import Progress, Volume

__all__ = ["Encoder", "available_encoders", "load_encoder"]


class Encoder(Protocol):
    """What every encoder offers."""

    name: str
    signature: str
    """Identifies weights and version; embeddings with another signature are not comparable."""
    recognises_particles: bool
    """Whether it knows particles of any kind without a query: its features then have a foreground."""

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
    "sam": "copick_cryosam.encoders.vit:load_sam_encoder",
}
_TRANSFORMER = "copick_cryosam.encoders.vit:load"


def available_encoders() -> list[str]:
    """Registered names; `load_encoder` also takes vision transformers, see `EncoderSettings.name`."""
    return sorted(_BACKENDS)


def load_encoder(settings: EncoderSettings, device: torch.device) -> Encoder:
    """The encoder that the settings name, on `device`: registered, or a vision transformer.

    Raises
    ------
    InputError
        No such encoder; the message names the ones there are.
    NotFoundError, DataError
        A checkpoint or transformer is not there, or cannot be used.
    """
    name = settings.name
    backends = dict(_BACKENDS)
    if name not in backends:
        if name in TRANSFORMERS or "/" in name or Path(name).expanduser().exists():
            backends[name] = _TRANSFORMER
        else:
            raise InputError(
                f"encoder: expected one of {', '.join([*available_encoders(), *TRANSFORMERS])}, a Hugging Face name or "
                f"a folder, found {name!r}",
                hint="Choose one of these encoders; `copick cryosam models` tells more about them",
            )
    loaded: Encoder = create("encoder", backends, name, settings, device)
    return loaded
