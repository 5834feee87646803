"""Subtomogram average of aligned particles, and how well its halves agree.

A particle in pose (R, c) is ``particle(x) = reference(R^T (x - c))`` in voxels, z, y, x: R turns the reference
into the particle. So ``reference(y) = particle(c + R y)``, in Fourier space ``F_reference(q) = F_particle(R q)``,
and a frequency q of the reference was measured in this particle where its tilt series measured R q. The average
is the sum of the measured parts divided, frequency by frequency, by how often each was measured
(Förster and Hegerl, J. Struct. Biol. 150, 2005, 10.1016/j.jsb.2004.12.010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from copick_cryosam.errors import InputError
from copick_cryosam.types import Instance, VoxelPoints
from copick_cryosam.wedge import Wedge

LEAST_MEASURED = 0.05
"""Share of the weight; a frequency measured by less of it fades, instead of being blown up from almost nothing."""
LEAST_EDGE = 12
"""Voxels; the mask of a smaller box has no room to fall off."""
_MASK_EDGE = 3.0
"""Voxels over which the mask of the Fourier shell correlation falls off."""
_BATCH = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Average:
    """A subtomogram average.

    The halves were aligned to one template, so they also agree in the template's noise: the Fourier shell
    correlation (FSC) is biased towards agreement ("template bias", "Einstein from noise"), and the resolutions
    are upper bounds of what was resolved, not those of independently refined halves.

    Attributes
    ----------
    density : float32, shape (E, E, E), axes z, y, x, the reference's centre at voxel E // 2
    halves : float32, shape (2, E, E, E): of the particles of even and of odd rank; zeros where there is none
    fsc : shape (E // 2,), of the halves, under a soft spherical mask, its effect not corrected for; NaN without halves
    frequencies : shape (E // 2,), 1/Å, ascending
    resolution_0143, resolution_05 : Å, where the FSC first falls below 0.143 and 0.5; twice the voxel spacing at
        best, infinity where the first shell is already below, NaN without halves
    count : particles of a weight above zero
    voxel_spacing : Å
    """

    density: NDArray[np.float32]
    halves: NDArray[np.float32]
    fsc: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    resolution_0143: float
    resolution_05: float
    count: int
    voxel_spacing: float


def cut_boxes(volume: torch.Tensor, points: VoxelPoints, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes around points, cut at whole voxels.

    Parameters
    ----------
    volume : shape (Z, Y, X); what a box needs from beyond it is filled with its mean
    edge : voxels, odd or even

    Returns
    -------
    Boxes of shape (N, edge, edge, edge) on the volume's device, and the points relative to the voxel edge // 2 of
    their boxes, shape (N, 3), from -0.5 to 0.5.
    """
    nearest = np.floor(points.zyx + 0.5).astype(np.int64)
    boxes = volume.mean().expand(len(points), edge, edge, edge).clone()
    for box, middle in zip(boxes, nearest, strict=True):
        start = middle - edge // 2
        low, high = np.maximum(start, 0), np.minimum(start + edge, volume.shape)
        if (low < high).all():
            inner = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
            box[inner] = volume[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    return boxes, torch.as_tensor(points.zyx - nearest, dtype=volume.dtype, device=volume.device)


def average(
    boxes: torch.Tensor,
    rotations: NDArray[np.float64],
    wedges: Wedge | Sequence[Wedge],
    *,
    voxel_spacing: float,
    offsets: torch.Tensor | None = None,
    weights: NDArray[np.float64] | None = None,
    mask_radius: float | None = None,
) -> Average:
    """Average particles in the reference's frame.

    Parameters
    ----------
    boxes : shape (N, E, E, E), best particle first, any device; their means are taken off. Only the ball of
        diameter E is seen in every orientation; the corners beyond it fade
    rotations : shape (N, 3, 3), R as above, on (z, y, x) columns
    wedges : of each particle's tomogram, or one for all
    voxel_spacing : Å
    offsets : shape (N, 3), the particle's centre relative to voxel E // 2 of its box, see `cut_boxes`; none is zero
    weights : shape (N,), >= 0; 0 leaves a particle out. None is 1 for all
    mask_radius : voxels, of the FSC's mask; None takes the largest that fades out within the box

    Raises
    ------
    InputError
        No particle, no weight above zero, or shapes that disagree.
    """
    count = len(boxes)
    rotations = np.asarray(rotations, dtype=np.float64)
    weight = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    each = [wedges] * count if isinstance(wedges, Wedge) else list(wedges)
    moved = torch.zeros(count, 3) if offsets is None else offsets
    _validate(boxes, rotations, each, moved, weight)
    ranked = np.flatnonzero(weight > 0)
    sums, measured = zip(
        *(_accumulate(boxes, rotations, each, moved, weight, ranked[half::2]) for half in (0, 1)), strict=True
    )
    edge = boxes.shape[-1]
    halves = torch.stack([_divide(*half, edge) for half in zip(sums, measured, strict=True)])
    density = _divide(sums[0] + sums[1], measured[0] + measured[1], edge)
    fsc = np.full(edge // 2, np.nan)
    if len(ranked) > 1:
        fsc = fourier_shell_correlation(halves[0], halves[1], mask_radius)
    frequencies = np.arange(1, edge // 2 + 1) / (edge * voxel_spacing)
    return Average(
        density=density.cpu().numpy(),
        halves=halves.cpu().numpy(),
        fsc=fsc,
        frequencies=frequencies,
        resolution_0143=resolution(fsc, frequencies, 0.143),
        resolution_05=resolution(fsc, frequencies, 0.5),
        count=len(ranked),
        voxel_spacing=voxel_spacing,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Particles:
    """Picks of one tomogram cut out for an average, best first.

    Attributes
    ----------
    boxes : float32, shape (N, E, E, E)
    offsets : of the particles' centres from voxel E // 2, shape (N, 3)
    rotations : R, shape (N, 3, 3)
    wedge : of the tomogram
    """

    boxes: torch.Tensor
    offsets: torch.Tensor
    rotations: NDArray[np.float64]
    wedge: Wedge


def cut_particles(
    volume: NDArray[np.float32], instances: Sequence[Instance], radius_vox: float, wedge: Wedge, most: int
) -> Particles:
    """The best instances that have a pose, in boxes of four radii.

    An instance that is as likely wrong as right is left out: it would blur the average.
    """
    chosen = [(one, one.pose) for one in instances if one.pose is not None and one.expected_precision >= 0.5][:most]
    edge = max(LEAST_EDGE, math.ceil(4 * radius_vox)) | 1
    centres = VoxelPoints(np.array([pose.centre_zyx for _, pose in chosen], dtype=np.float64).reshape(-1, 3))
    boxes, offsets = cut_boxes(torch.from_numpy(volume), centres, edge)
    rotations = np.array([pose.rotation for _, pose in chosen], dtype=np.float64).reshape(-1, 3, 3)
    return Particles(boxes=boxes, offsets=offsets, rotations=rotations, wedge=wedge)


def average_of(parts: Sequence[Particles], voxel_spacing: float, radius_vox: float) -> Average:
    """The average of the particles of several tomograms, one after the other, so that both halves hold each of them.

    Raises
    ------
    InputError
        There is no particle.
    """
    solid = [part for part in parts if len(part.boxes)]
    if not solid:
        raise InputError(
            "average: expected at least one pick of an expected precision of 0.5 with an orientation, found none",
            hint="Give more seeds, or leave --output-average out",
        )
    # voxel spacings that pass for the same may differ enough for the next odd edge
    edge = min(part.boxes.shape[-1] for part in solid)
    inner = [slice((part.boxes.shape[-1] - edge) // 2, (part.boxes.shape[-1] + edge) // 2) for part in solid]
    boxes = [part.boxes[:, some, some, some] for part, some in zip(solid, inner, strict=True)]
    return average(
        torch.cat(boxes),
        np.concatenate([part.rotations for part in solid]),
        [part.wedge for part in solid for _ in range(len(part.boxes))],
        voxel_spacing=voxel_spacing,
        offsets=torch.cat([part.offsets for part in solid]),
        mask_radius=1.2 * radius_vox,
    )


def fourier_shell_correlation(
    first: torch.Tensor, second: torch.Tensor, mask_radius: float | None = None
) -> NDArray[np.float64]:
    """FSC of two cubes under a soft spherical mask, shells 1 to E // 2 samples from the origin, shape (E // 2,).

    The mask itself makes neighbouring frequencies agree; that is not corrected for (no phase randomisation).
    A shell without power in either cube has the correlation 0.
    """
    edge = first.shape[-1]
    radius = edge / 2 - _MASK_EDGE if mask_radius is None else mask_radius
    line = torch.arange(edge, device=first.device) - edge // 2
    distance = (line[:, None, None] ** 2 + line[:, None] ** 2 + line**2).float().sqrt()
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / _MASK_EDGE).clamp(0, 1))
    one, two = (torch.fft.rfftn((cube - (cube * mask).sum() / mask.sum()) * mask) for cube in (first, second))
    shell = (_frequencies(edge, first.device).norm(dim=-1) * edge).round().long().flatten()
    # the half-space holds one of every Friedel pair, but both where the last frequency is 0 or at Nyquist
    pairs = torch.full(one.shape, 2.0, device=first.device)
    pairs[..., 0] = 1
    if edge % 2 == 0:
        pairs[..., -1] = 1

    def over_shells(values: torch.Tensor) -> NDArray[np.float64]:
        sums = torch.bincount(shell, (values * pairs).flatten().double(), minlength=edge // 2 + 1)
        return np.asarray(sums[1 : edge // 2 + 1].cpu().numpy())

    together = over_shells((one * two.conj()).real)
    power = over_shells(one.abs() ** 2) * over_shells(two.abs() ** 2)
    return np.asarray(np.divide(together, np.sqrt(power), out=np.zeros_like(together), where=power > 0))


def resolution(fsc: NDArray[np.float64], frequencies: NDArray[np.float64], threshold: float) -> float:
    """Å at which the FSC first falls below a threshold, between shells by linear interpolation; see `Average`."""
    if np.isnan(fsc).any():
        return math.nan
    below = np.flatnonzero(fsc < threshold)
    if len(below) == 0:
        return float(1 / frequencies[-1])
    last = int(below[0])
    if last == 0:
        return math.inf
    part = (fsc[last - 1] - threshold) / (fsc[last - 1] - fsc[last])
    return float(1 / (frequencies[last - 1] + part * (frequencies[last] - frequencies[last - 1])))


def _validate(
    boxes: torch.Tensor,
    rotations: NDArray[np.float64],
    wedges: Sequence[Wedge],
    offsets: torch.Tensor,
    weights: NDArray[np.float64],
) -> None:
    count = len(boxes)
    if count == 0 or not (weights > 0).any():
        raise InputError(
            f"particles: expected at least one of a weight above zero, found {count} particles, none of such a weight",
            hint="Lower the score that particles need",
        )
    if boxes.ndim != 4 or len(set(boxes.shape[1:])) != 1:
        raise InputError(f"boxes: expected shape (N, E, E, E), found {tuple(boxes.shape)}", hint="Cut cubes")
    if boxes.shape[-1] < LEAST_EDGE:
        raise InputError(
            f"boxes: expected an edge of at least {LEAST_EDGE} voxels, found {boxes.shape[-1]}", hint="Cut larger boxes"
        )
    found = (rotations.shape, tuple(offsets.shape), weights.shape, len(wedges))
    if found != ((count, 3, 3), (count, 3), (count,), count):
        raise InputError(
            f"poses: expected rotations, offsets, weights and wedges of {count} particles, found shapes {found}",
            hint="Give one of each per box",
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(f"weights: expected none below zero, found {weights.min()}", hint="Clip them at zero")


def _accumulate(
    boxes: torch.Tensor,
    rotations: NDArray[np.float64],
    wedges: Sequence[Wedge],
    offsets: torch.Tensor,
    weights: NDArray[np.float64],
    which: NDArray[np.int64],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of the measured transforms and of how far they were measured, shape (E, E, E // 2 + 1)."""
    edge, device = boxes.shape[-1], boxes.device
    frequencies = _frequencies(edge, device)
    total = torch.zeros(frequencies.shape[:-1], dtype=torch.complex64, device=device)
    measured = torch.zeros(frequencies.shape[:-1], device=device)
    for start in range(0, len(which), _BATCH):
        some = which[start : start + _BATCH]
        turn = torch.as_tensor(rotations[some], dtype=torch.float32, device=device)
        turned = _turn_back(boxes[some].float(), offsets[some].to(device, torch.float32), turn)
        # the reference's centre at the origin, for which the transform of a centred particle is smooth
        spectra = torch.fft.rfftn(torch.fft.ifftshift(turned, dim=(1, 2, 3)), dim=(1, 2, 3))
        for index, spectrum, rotation in zip(some, spectra, turn, strict=True):
            seen = wedges[index].measured(frequencies @ rotation.T, edge=1 / edge) * float(weights[index])
            total += spectrum * seen
            measured += seen
    return total, measured


def _turn_back(boxes: torch.Tensor, offsets: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Particles in the reference's frame: box(c + R y) at every voxel y, zero beyond the box; shape as `boxes`.

    Linear interpolation between voxels would blur; boxes are brought to half the spacing by zeros around their
    spectra first, where the same blur is small.
    """
    count, edge = len(boxes), boxes.shape[-1]
    fine = _refine(boxes - boxes.mean(dim=(1, 2, 3), keepdim=True))
    line = torch.arange(edge, device=boxes.device, dtype=torch.float32) - edge // 2
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)
    at = places @ rotations.transpose(1, 2) + offsets[:, None] + edge // 2
    # grid_sample wants x, y, z from -1 to 1, here the centres of the first and last fine voxel
    grid = (2 * at / (2 * edge - 1) * 2 - 1).flip(-1).reshape(count, edge, edge, edge, 3)
    return torch.nn.functional.grid_sample(fine[:, None], grid, align_corners=True)[:, 0]


def _refine(boxes: torch.Tensor) -> torch.Tensor:
    """Twice as many voxels by zeros around the spectrum; voxel i becomes 2 i. The Nyquist planes are dropped."""
    edge = boxes.shape[-1]
    spectra = torch.fft.rfftn(boxes, dim=(1, 2, 3))
    wide = torch.zeros(len(boxes), 2 * edge, 2 * edge, edge + 1, dtype=spectra.dtype, device=boxes.device)
    positive, negative = slice(0, (edge + 1) // 2), slice(-((edge - 1) // 2), None)
    for z in (positive, negative):
        for y in (positive, negative):
            wide[:, z, y, positive] = spectra[:, z, y, positive]
    fine: torch.Tensor = torch.fft.irfftn(wide, s=(2 * edge,) * 3, dim=(1, 2, 3)) * 8
    return fine


def _divide(total: torch.Tensor, measured: torch.Tensor, edge: int) -> torch.Tensor:
    """The density of a sum of transforms, shape (E, E, E), its centre at voxel E // 2."""
    least = max(LEAST_MEASURED * float(measured.max()), 1e-12)
    density = torch.fft.irfftn(total / measured.clamp(min=least), s=(edge,) * 3)
    centred: torch.Tensor = torch.fft.fftshift(density)
    return centred


def _frequencies(edge: int, device: torch.device) -> torch.Tensor:
    """Cycles per voxel of `rfftn`'s half-space, shape (E, E, E // 2 + 1, 3), order z, y, x."""
    both, half = torch.fft.fftfreq(edge, device=device), torch.fft.rfftfreq(edge, device=device)
    return torch.stack(torch.meshgrid(both, both, half, indexing="ij"), dim=-1)
