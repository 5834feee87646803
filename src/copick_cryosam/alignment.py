"""The second look: rotational correlation of candidates with the seeds.

Features of a net tell kinds of particles apart about as well as a first glance does. Here every candidate is
turned against the seed: the seed's own box is the template, its transform is read at the frequencies of the
candidate's box turned back by R, and correlated over many R and small shifts. Only frequencies that both missing
wedges leave count, and the correlation is normalised over them, so that it says how alike two particles are and
not how they lie to the beam. Noise is whitened by the tomogram's background.

The frequencies are a few hundred, up to `AlignmentSettings.limit` cycles per box, so that all rotations of all
candidates are one matrix product per shift.

A particle in pose (R, c) is particle(x) = reference(R^T (x - c)); F_reference(R^T k) = F_particle(k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.averaging import average
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.contrast import smooth
from copick_cryosam.rotations import angles_between, even_rotations, small_rotations, spacing_of
from copick_cryosam.types import FloatArray, VoxelPoints
from copick_cryosam.wedge import Wedge

BOX_EDGE = 25
"""Samples along a box; odd, so that its centre is a sample."""
BOX_HALF = 1.6
"""Half of a box's edge, in radii: the particle, and room to turn and shift it."""
MASK_RADIUS = 1.15
"""Of the soft ball that is correlated, in radii."""
_MASK_FALL = 2.0
"""Samples over which the ball fades."""
NEAR = 60.0
"""Degrees within which a candidate's orientation is sought again where it is known roughly."""
_BACKGROUND = 120
"""Boxes from which the background's spectrum is taken."""
_OVERSAMPLING = 2
"""Of the template's spectrum, for linear interpolation between its samples."""
_AT_ONCE = 256
"""Candidates correlated in one matrix product."""
_REFINED = 64
"""Candidates refined at once, each at rotations of its own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Boxes of one tomogram, ready to be correlated.

    Attributes
    ----------
    boxes : (N, E, E, E), mean 0 within the mask, masked; samples of `Geometry.pixel` voxels
    spectra : complex (N, K), whitened, 0 in the missing wedge
    amplitude : (K,), of the background, by shell
    wedge : of the tomogram
    """

    boxes: Tensor
    spectra: Tensor
    amplitude: Tensor
    wedge: Wedge

    def __len__(self) -> int:
        return len(self.boxes)

    def only(self, which: int | np.int64 | NDArray[np.int64]) -> Candidates:
        """Some of them."""
        some = np.atleast_1d(which)
        return Candidates(
            boxes=self.boxes[some], spectra=self.spectra[some], amplitude=self.amplitude, wedge=self.wedge
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Template:
    """What candidates are compared with.

    Attributes
    ----------
    spectrum : complex, (n, n, n), centred and oversampled
    ratio : samples per cycle per box
    wedge : of the one particle it is made of, the first one's where it is made of two; None where an average of more
        leaves none
    amplitude : (K,), by which candidates are whitened, too
    """

    spectrum: Tensor
    ratio: float
    wedge: Wedge | None
    amplitude: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Aligned:
    """How candidates fit a template.

    Attributes
    ----------
    score : normalised correlation at the best orientation and shift, shape (N,), at most 1
    rotations : R, template to candidate, shape (N, 3, 3) on (z, y, x) columns
    shifts : from the candidate's point to where the template fits best, voxels, shape (N, 3)
    """

    score: FloatArray
    rotations: FloatArray
    shifts: FloatArray

    def __len__(self) -> int:
        return len(self.score)

    def only(self, which: NDArray[np.int64]) -> Aligned:
        """Some of them."""
        return Aligned(score=self.score[which], rotations=self.rotations[which], shifts=self.shifts[which])

    def put(self, which: np.int64 | NDArray[np.int64], found: Aligned) -> Aligned:
        """All of them, some replaced."""
        score, rotations, shifts = self.score.copy(), self.rotations.copy(), self.shifts.copy()
        some = np.atleast_1d(which)
        score[some], rotations[some], shifts[some] = found.score, found.rotations, found.shifts
        return Aligned(score=score, rotations=rotations, shifts=shifts)


class Aligner:
    """Correlates particles of one size.

    Parameters
    ----------
    radius_vox : of the object, in voxels of the tomograms
    """

    def __init__(self, radius_vox: float, settings: AlignmentSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.half = BOX_HALF * radius_vox
        self.pixel = 2 * self.half / BOX_EDGE
        self.mask = _ball(BOX_EDGE, MASK_RADIUS * radius_vox / self.pixel).to(device)
        self.frequencies, self.shells = _half_space(settings.limit)
        self.frequencies, self.shells = self.frequencies.to(device), self.shells.to(device)
        self._even = even_rotations(settings.rotations)
        self.rotations = torch.from_numpy(self._even).float().to(device)
        steps = torch.arange(-settings.shift, settings.shift + 1).float()
        self.shifts = torch.cartesian_prod(steps, steps, steps).to(device)
        turns = self.shifts @ self.frequencies.T
        self._phases = torch.exp(2j * math.pi / BOX_EDGE * turns)

    def look(self, volume: Tensor, points: VoxelPoints, wedge: Wedge) -> Candidates:
        """Cut and transform the boxes around points of a tomogram (Z, Y, X), particles bright."""
        smoothed = volume
        if self.pixel > 1.05:
            smoothed = torch.from_numpy(smooth(volume.cpu().numpy(), 0.35 * self.pixel))
        smoothed = smoothed.to(self.device)
        amplitude = self._background(smoothed, wedge)
        boxes = self._cut(smoothed, torch.tensor(points.zyx))
        spectra = self._transform(boxes) / amplitude * wedge.measured(self.frequencies)
        return Candidates(boxes=boxes, spectra=spectra, amplitude=amplitude, wedge=wedge)

    def template(self, candidates: Candidates, which: int) -> Template:
        """One particle as it is."""
        return self._template(candidates.boxes[which], candidates.wedge, candidates.amplitude)

    def averaged(self, members: Sequence[tuple[Candidates, int, NDArray[np.float64], NDArray[np.float64]]]) -> Template:
        """Aligned particles averaged: candidates, index, rotation and shift (voxels) of each; at least one."""
        boxes = torch.stack([some.boxes[i] for some, i, _, _ in members])
        offsets = torch.tensor(np.array([shift / self.pixel for *_, shift in members]), dtype=torch.float32)
        made = average(
            boxes,
            np.array([rotation for _, _, rotation, _ in members]),
            [some.wedge for some, *_ in members],
            voxel_spacing=1.0,
            offsets=offsets.to(self.device),
        )
        amplitude = torch.stack([some.amplitude for some, *_ in members]).mean(dim=0)
        density = torch.from_numpy(made.density).to(self.device)
        return self._template(density * self.mask, None if len(members) > 2 else members[0][0].wedge, amplitude)

    def align(self, template: Template, candidates: Candidates, *, near: NDArray[np.float64] | None = None) -> Aligned:
        """Every candidate at its best orientation and shift.

        Parameters
        ----------
        near : a rotation, (3, 3), around which to search; None: all of them
        """
        rotations = self.rotations
        if near is not None:
            rotations = rotations[torch.from_numpy(angles_between(self._even, near) <= NEAR)]
        parts = [
            self._search(template, candidates.spectra[start : start + _AT_ONCE], candidates.wedge, rotations)
            for start in range(0, len(candidates), _AT_ONCE)
        ]
        if not parts:
            return Aligned(score=np.zeros(0), rotations=np.zeros((0, 3, 3)), shifts=np.zeros((0, 3)))
        score, rotation, shift = (torch.cat(each) for each in zip(*parts, strict=True))
        return Aligned(
            score=score.cpu().numpy().astype(np.float64),
            rotations=rotations[rotation].cpu().numpy().astype(np.float64),
            shifts=(self.shifts[shift] * self.pixel).cpu().numpy().astype(np.float64),
        )

    def refine(self, template: Template, candidates: Candidates, coarse: Aligned) -> Aligned:
        """Finer poses: around each one found, steps of a half, a quarter and so on of the grid's spacings."""
        if len(candidates) == 0 or self.settings.refinements == 0:
            return coarse
        score = torch.empty(len(candidates), device=self.device)
        rotations = torch.from_numpy(coarse.rotations).float().to(self.device)
        shifts = torch.from_numpy(coarse.shifts / self.pixel).float().to(self.device)
        steps = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3).to(self.device)
        angle = spacing_of(self.settings.rotations)
        for _ in range(self.settings.refinements):
            angle /= 2
            steps = steps / 2
            # both hold no step at all, so that no pose gets worse
            around = torch.from_numpy(small_rotations(angle)).float().to(self.device)
            for start in range(0, len(candidates), _REFINED):
                some = slice(start, start + _REFINED)
                turned, moved = around @ rotations[some, None], shifts[some, None] + steps
                scores = self._compare(template, candidates.spectra[some], candidates.wedge, turned, moved)
                score[some], best = scores.flatten(1).max(dim=1)
                every = torch.arange(len(best), device=self.device)
                rotations[some] = turned[every, best // len(steps)]
                shifts[some] = moved[every, best % len(steps)]
        return Aligned(
            score=score.cpu().numpy().astype(np.float64),
            rotations=rotations.cpu().numpy().astype(np.float64),
            shifts=(shifts * self.pixel).cpu().numpy().astype(np.float64),
        )

    def _compare(self, template: Template, spectra: Tensor, wedge: Wedge, rotations: Tensor, shifts: Tensor) -> Tensor:
        """Correlation (N, R, S) of N candidates, each at its own rotations (N, R, 3, 3) and shifts (N, S, 3)."""
        values, known = self._turn(template, rotations)
        power = torch.einsum("nrk,nk->nr", known, spectra.abs().square())
        power = power * (values.abs().square() @ wedge.measured(self.frequencies))
        moved = spectra[:, None] * torch.exp(2j * math.pi / BOX_EDGE * (shifts @ self.frequencies.T))
        products = torch.view_as_real(values).flatten(2) @ torch.view_as_real(moved).flatten(2).transpose(1, 2)
        return products * power.clamp(min=1e-12).rsqrt()[..., None]

    def _turn(self, template: Template, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """The template's whitened transform turned by rotations (..., 3, 3), and what is known of it, (..., K)."""
        # R^T k, as rows k R
        turned = self.frequencies @ rotations
        values = _read(template.spectrum, template.ratio, turned) / template.amplitude
        known = torch.ones_like(values.real) if template.wedge is None else template.wedge.measured(turned)
        return values * known, known

    def _search(
        self, template: Template, spectra: Tensor, wedge: Wedge, rotations: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best correlation of each candidate, and the indices of its rotation and shift."""
        values, known = self._turn(template, rotations)
        measured = wedge.measured(self.frequencies)
        power = (known @ spectra.abs().square().T) * (values.abs().square() @ measured)[:, None]
        norm = power.clamp(min=1e-12).rsqrt()
        flat = torch.view_as_real(values).flatten(1)
        score = torch.full((len(spectra),), -1.0, device=spectra.device)
        rotation = torch.zeros(len(spectra), dtype=torch.long, device=spectra.device)
        shift = torch.zeros_like(rotation)
        for index, phase in enumerate(self._phases):
            # moving the candidate by -s multiplies its transform by exp(2 π i k s)
            products = (flat @ torch.view_as_real(spectra * phase).flatten(1).T) * norm
            best, which = products.max(dim=0)
            better = best > score
            score = torch.where(better, best, score)
            rotation = torch.where(better, which, rotation)
            shift = torch.where(better, index, shift)
        return score, rotation, shift

    def _template(self, box: Tensor, wedge: Wedge | None, amplitude: Tensor) -> Template:
        edge = BOX_EDGE * _OVERSAMPLING + 1
        margin = (edge - BOX_EDGE) // 2
        padded = F.pad(box, (margin,) * 6)
        spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(padded)))
        return Template(spectrum=spectrum, ratio=edge / BOX_EDGE, wedge=wedge, amplitude=amplitude)

    def _cut(self, volume: Tensor, points: Tensor) -> Tensor:
        """Boxes (N, E, E, E) resampled to `pixel`, masked, with mean 0 under the mask."""
        ramp = (torch.arange(BOX_EDGE, device=self.device) - BOX_EDGE // 2) * self.pixel
        boxes = torch.empty((len(points), BOX_EDGE, BOX_EDGE, BOX_EDGE), device=self.device)
        for start in range(0, len(points), 64):
            some = points[start : start + 64].float().to(self.device)
            grid = torch.empty((len(some), *boxes.shape[1:], 3), device=self.device)
            for axis, size in enumerate(volume.shape):
                # grid_sample counts x, y, z, from -1 to 1 over the edges of the volume
                place = (some[:, axis, None] + ramp + 0.5) * (2 / size) - 1
                shape = [len(some), 1, 1, 1]
                shape[1 + axis] = BOX_EDGE
                grid[..., 2 - axis] = place.reshape(shape)
            whole = volume[None, None].expand(len(some), 1, *volume.shape)
            boxes[start : start + 64] = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)[:, 0]
        means = (boxes * self.mask).sum((1, 2, 3), keepdim=True) / self.mask.sum()
        return (boxes - means) * self.mask

    def _transform(self, boxes: Tensor) -> Tensor:
        """Transforms about the boxes' centres at the frequencies, complex (N, K)."""
        z, y, x = self.frequencies.long().T % BOX_EDGE
        if len(boxes) == 0:
            return torch.zeros((0, len(z)), dtype=torch.complex64, device=self.device)
        parts = [
            torch.fft.fftn(torch.fft.ifftshift(some, dim=(1, 2, 3)), dim=(1, 2, 3))[:, z, y, x]
            for some in torch.split(boxes, _AT_ONCE)
        ]
        return torch.cat(parts)

    def _background(self, volume: Tensor, wedge: Wedge) -> Tensor:
        """Amplitude of boxes at random places, a mean over each shell, (K,)."""
        size = np.array(volume.shape)
        reach = np.minimum(0.6 * self.half, (size - 1) / 2)
        places = np.random.default_rng(0).uniform(reach, size - 1 - reach, size=(_BACKGROUND, 3))
        power = self._transform(self._cut(volume, torch.from_numpy(places))).abs().square()
        measured = wedge.measured(self.frequencies)
        length = int(self.shells.max()) + 1
        sums = torch.zeros(length, device=self.device).index_add_(0, self.shells, power.mean(dim=0) * measured)
        counts = torch.zeros(length, device=self.device).index_add_(0, self.shells, measured)
        mean = sums / counts.clamp(min=1)
        return mean.clamp(min=float(mean.max()) * 1e-6 + 1e-12).sqrt()[self.shells]


def _ball(edge: int, radius: float) -> Tensor:
    ramp = torch.arange(edge) - edge // 2
    distance = torch.sqrt(ramp[:, None, None] ** 2 + ramp[None, :, None] ** 2 + ramp[None, None] ** 2)
    return ((radius + _MASK_FALL - distance) / _MASK_FALL).clamp(0, 1)


def _half_space(limit: float) -> tuple[Tensor, Tensor]:
    """Frequencies (K, 3) of up to `limit` cycles per box, one of each Friedel pair, and their shells (K,)."""
    reach = int(limit)
    ramp = torch.arange(-reach, reach + 1)
    every = torch.cartesian_prod(ramp, ramp, ramp)
    length = every.double().norm(dim=1)
    sign = every[:, 0] * 10_000 + every[:, 1] * 100 + every[:, 2]
    kept = every[(length <= limit) & (sign > 0)]
    return kept.float(), kept.double().norm(dim=1).round().long()


def _read(spectrum: Tensor, ratio: float, frequencies: Tensor) -> Tensor:
    """Values of a centred spectrum at frequencies (..., 3) in cycles per box, z, y, x; linear, 0 outside."""
    place = (frequencies * (ratio / ((spectrum.shape[0] - 1) / 2))).flip(-1).reshape(1, 1, 1, -1, 3)
    parts = torch.stack([spectrum.real, spectrum.imag])[None]
    found = F.grid_sample(parts, place, align_corners=True).reshape(2, *frequencies.shape[:-1])
    return torch.complex(found[0], found[1])
