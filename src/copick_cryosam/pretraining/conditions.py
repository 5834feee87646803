"""Conditions under which one specimen is imaged, and how positions in it read in the tomogram that results.

A specimen is simulated at 10 Å. For another voxel spacing its density is resampled before the tilt series is taken,
so that every condition shows the same particles at the same places in Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.pretraining.imaging import Imaging, reconstruct
from copick_cryosam.pretraining.simulate import MARGIN, Specimen

SPACING = 10.0
"""Å per voxel that specimens are simulated at."""
NOISES = (0.02, 0.05, 0.1, 0.5)
"""Signal-to-noise ratios of the noise curve."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How a specimen is imaged; the defaults are the reference.

    Attributes
    ----------
    snr : variance of the signal over variance of the noise in the untilted image at 10 Å per pixel. At other voxel
        spacings the dose is the same, so that noise averages out over larger pixels.
    voxel_spacing : Å
    tilt_range : degrees, to both sides
    tilt_axis : y, or x (the tomogram transposed)
    dark : the particles are darker than their surroundings, and nobody says so
    phase_flip : the CTF's sign is corrected before reconstruction
    low_pass : width in Å (two standard deviations) of a Gaussian on the tomogram; 0 for none
    median : edge in voxels of a median filter on the tomogram, which looks denoised then; 0 for none
    """

    name: str
    snr: float = 0.1
    voxel_spacing: float = SPACING
    tilt_range: float = 60.0
    tilt_axis: str = "y"
    dark: bool = False
    phase_flip: bool = False
    low_pass: float = 0.0
    median: int = 0

    @property
    def scale(self) -> float:
        """Voxels of the specimen in one voxel of the tomogram."""
        return self.voxel_spacing / SPACING


REFERENCE = Condition(name="reference")
CONDITIONS = (
    Condition(name="voxel spacing 5 Å", voxel_spacing=5.0),
    Condition(name="voxel spacing 15 Å", voxel_spacing=15.0),
    Condition(name="voxel spacing 20 Å", voxel_spacing=20.0),
    Condition(name="tilt range ±40°", tilt_range=40.0),
    Condition(name="tilt range ±70°", tilt_range=70.0),
    Condition(name="tilt axis x", tilt_axis="x"),
    Condition(name="dark particles, polarity found", dark=True),
    Condition(name="CTF phase-flipped", phase_flip=True),
    Condition(name="Gaussian blur of 40 Å", low_pass=40.0),
    Condition(name="median of 3 x 3 x 3 voxels", median=3),
)
"""What the conditions table compares with the reference."""


def noise_conditions(snrs: Sequence[float]) -> list[Condition]:
    """The reference under other signal-to-noise ratios."""
    return [REFERENCE if snr == REFERENCE.snr else Condition(name=f"SNR {snr:g}", snr=snr) for snr in snrs]


def tomogram_under(
    specimen: Specimen, condition: Condition, defocus: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A tomogram of a specimen, float32, without the margin in x; particles bright unless `condition.dark`.

    Parameters
    ----------
    defocus : Å
    """
    density, margin = specimen.density, MARGIN
    if condition.scale != 1:
        density, margin = _resampled(density, condition.scale)
    imaging = Imaging(
        voxel_spacing=condition.voxel_spacing,
        tilt_range=condition.tilt_range,
        defocus=defocus,
        snr=condition.snr * condition.scale**2,
        phase_flip=condition.phase_flip,
        low_pass=condition.low_pass,
    )
    stop = margin + (specimen.density.shape[2] - 2 * MARGIN - 1) / condition.scale
    volume = reconstruct(density, imaging, rng)[:, :, margin : int(np.floor(stop + 1e-6)) + 1]
    if condition.median:
        volume = ndimage.median_filter(volume, condition.median)
    if condition.tilt_axis == "x":
        volume = volume.transpose(0, 2, 1)
    return np.ascontiguousarray(-volume if condition.dark else volume, dtype=np.float32)


def positions_under(points_zyx: NDArray[np.float64], condition: Condition) -> NDArray[np.float64]:
    """Positions in voxels of the specimen's 10 Å, shape (N, 3), in voxels of its tomogram under a condition."""
    axes = [0, 2, 1] if condition.tilt_axis == "x" else [0, 1, 2]
    return np.asarray(points_zyx, dtype=np.float64).reshape(-1, 3)[:, axes] / condition.scale


def _resampled(density: NDArray[np.float32], scale: float) -> tuple[NDArray[np.float32], int]:
    """A density with voxels `scale` times as large, and its margin in them: voxel (0, 0, margin) stays where it was."""
    if scale > 1:  # detail that the larger voxels cannot show must not come back as another one
        density = ndimage.gaussian_filter(density, 0.35 * scale)
    margin = int(np.floor(MARGIN / scale + 1e-6))
    offset = np.array([0, 0, MARGIN - margin * scale])
    shape = np.floor((np.array(density.shape) - 1 - offset) / scale + 1e-6).astype(int) + 1
    resampled = ndimage.affine_transform(density, np.full(3, scale), offset, tuple(shape), order=1, mode="nearest")
    return np.asarray(resampled, dtype=np.float32), margin
