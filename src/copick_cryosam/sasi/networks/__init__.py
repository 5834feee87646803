"""Nets that label every voxel of a window; any of them serves the rest of SaSi through the same interface.

A backend is a module with a factory, named in `_BACKENDS` and imported on use.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from copick_cryosam.errors import InputError
from copick_cryosam.registry import create
from copick_cryosam.sasi.settings import SasiSettings

__all__ = ["Network", "available_networks", "load_network"]


class Network(nn.Module):
    """What every net offers.

    Attributes
    ----------
    name : of the architecture
    window : edge of the windows it is given, voxels
    divisor : the edge of a window must be a multiple of this
    embedding : e, length of what `embed` gives
    """

    name: str
    window: int
    divisor: int
    embedding: int

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, 1, W, W, W), standardised, particles bright -> logits (B, classes + 1, W, W, W); class 0 is
        background."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Windows (B, 1, W, W, W) -> the mean of the deepest features over each, (B, e)."""
        raise NotImplementedError

    def learned(self) -> Iterator[nn.Parameter]:
        """The weights that `init` takes from another net; none unless the architecture says so."""
        return iter(())


_BACKENDS = {
    "deepfinder": "copick_cryosam.sasi.networks.deepfinder:load",
    "monai-unet": "copick_cryosam.sasi.networks.monai_unet:load",
    "embednet": "copick_cryosam.sasi.networks.embednet:load",
}


def available_networks() -> list[str]:
    """Registered names."""
    return sorted(_BACKENDS)


def load_network(settings: SasiSettings, classes: int) -> Network:
    """The net that the settings name, on the CPU, its weights drawn by `settings.training.seed`.

    Random numbers elsewhere are left as they are.

    Parameters
    ----------
    classes : K, without the background

    Raises
    ------
    InputError
        No such net, it needs a package that is missing, or the window does not fit it.
    """
    if classes < 1:
        raise InputError(f"classes: expected at least one, found {classes}", hint="Give points of one object or more")
    # Constructors of torch and MONAI take no generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        net: Network = create("architecture", _BACKENDS, settings.architecture, settings, classes)
    if settings.window is not None:
        if settings.window % net.divisor:
            below = settings.window // net.divisor * net.divisor
            raise InputError(
                f"window: expected a multiple of {net.divisor} for {net.name}, found {settings.window}",
                hint=f"Choose {below + net.divisor}" + (f" or {below}" if below else ""),
            )
        net.window = settings.window
    return net
