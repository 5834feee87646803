"""A weight-free encoder: band-passed intensities. It serves the tests and shows what a backend must offer."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import torch
from scipy import ndimage

from copick_cryosam.config import EncoderSettings
from copick_cryosam.contrast import smooth
from copick_cryosam.features import CellGrid, DenseFeatures
from copick_cryosam.types import Progress, Volume

SCALES = (1.0, 2.0, 3.0, 4.5, 7.0, 10.0)
"""Gaussian widths in voxels; a feature is the difference of two neighbouring ones."""
STRIDE = 2


class FakeEncoder:
    """Differences of Gaussians at five scales, each standardised over the volume, at half resolution."""

    name = "fake"
    recognises_particles = False
    signature = f"fake-{hashlib.sha256(repr(SCALES).encode()).hexdigest()[:12]}"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def encode(
        self, volume: Volume, *, voxel_spacing: float | None = None, progress: Progress | None = None
    ) -> DenseFeatures:
        """See `Encoder.encode`; the scales are voxels, so the voxel spacing does not matter."""
        whole = np.asarray(volume[:, :, :], dtype=np.float32)
        blurred = [smooth(whole, scale) for scale in SCALES]
        bands = []
        for step, (fine, coarse) in enumerate(itertools.pairwise(blurred)):
            band = fine - coarse
            bands.append(_halve(band / max(float(band.std()), 1e-6)))
            if progress is not None:
                progress("encode", step + 1, len(SCALES) - 1)
        values = np.stack(bands).astype(np.float32)
        cells = values.shape[1:]
        return DenseFeatures(
            values=torch.from_numpy(values).to(self._device),
            grid=CellGrid(
                (cells[0], cells[1], cells[2]),
                (STRIDE, STRIDE, STRIDE),
                (whole.shape[0], whole.shape[1], whole.shape[2]),
            ),
        )


def _halve(
    band: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Means of 2 x 2 x 2 blocks; an odd last plane is repeated."""
    even = np.pad(band, [(0, n % 2) for n in band.shape], mode="edge")
    return np.asarray(ndimage.uniform_filter(even, 2, origin=-1)[::2, ::2, ::2], dtype=np.float32)


def load(settings: EncoderSettings, device: torch.device) -> FakeEncoder:
    """The fake encoder; it has no settings."""
    return FakeEncoder(device)
