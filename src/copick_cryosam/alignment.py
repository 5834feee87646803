"""The second look: rotational correlation of candidates with the seeds.

Features of a net tell kinds of particles apart about as well as a first glance does. Here every candidate is
turned against the seed: the seed's own box is the template, its transform is read at the frequencies of the
candidate's box turned back by R, and correlated over many R and small shifts. Only frequencies that both missing
wedges leave count, and the correlation is normalised over them, so that it says how alike two particles are and
not how they lie to the beam. Noise is whitened by the tomogram's background.

The frequencies are a few hundred, up to `AlignmentSettings.limit` cycles per box, so that all rotations of many
candidates are one matrix product (`pose_search`).

A particle in pose (R, c) is particle(x) = reference(R^T (x - c)); F_reference(R^T k) = F_particle(k).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.aligned import Aligned, Candidates, Halved, Member, Template, Turned
from copick_cryosam.averaging import Average, average
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.contrast import smooth
from copick_cryosam.devices import fastest_dtype
from copick_cryosam.pose_search import PoseSearch
from copick_cryosam.rotations import angles_between, even_rotations, small_rotations, spacing_of
from copick_cryosam.turning import BOX_EDGE, half_space, inner_spectrum, phases, read, turned_grid
from copick_cryosam.types import VoxelPoints
from copick_cryosam.wedge import Wedge

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
_AT_ONCE = 256
"""Candidates transformed at once."""
_REFINED = 64
"""Candidates refined at once, each at rotations of its own."""


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
        self.frequencies, self.shells = half_space(settings.limit)
        self.frequencies, self.shells = self.frequencies.to(device), self.shells.to(device)
        self._even = even_rotations(settings.rotations)
        self._grid = turned_grid(settings.rotations, settings.limit, device)
        self._search = PoseSearch(self.frequencies, settings.shift, fastest_dtype(settings.precision, device))

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

    def averaged(self, members: Sequence[Member]) -> Template:
        """Aligned particles averaged; at least one."""
        made, wedges, amplitude = self._average(members)
        return self._template(torch.from_numpy(made.density).to(self.device) * self.mask, _common(wedges), amplitude)

    def halved(self, members: Sequence[Member]) -> Halved:
        """As `averaged`, with the averages of both halves; at least two."""
        made, wedges, amplitude = self._average(members)
        cubes = [made.density, *made.halves]
        whole, even, odd = (
            self._template(torch.from_numpy(cube).to(self.device) * self.mask, _common(of), amplitude)
            for cube, of in zip(cubes, (wedges, wedges[::2], wedges[1::2]), strict=True)
        )
        return Halved(whole=whole, halves=(even, odd))

    def _average(self, members: Sequence[Member]) -> tuple[Average, list[Wedge], Tensor]:
        wedges = [some.wedge for some, *_ in members]
        offsets = torch.tensor(np.array([shift / self.pixel for *_, shift in members]), dtype=torch.float32)
        made = average(
            torch.stack([some.boxes[i] for some, i, _, _ in members]),
            np.array([rotation for _, _, rotation, _ in members]),
            wedges,
            voxel_spacing=1.0,
            offsets=offsets.to(self.device),
        )
        return made, wedges, torch.stack([some.amplitude for some, *_ in members]).mean(dim=0)

    def align(self, template: Template, candidates: Candidates, *, near: NDArray[np.float64] | None = None) -> Aligned:
        """Every candidate at its best orientation and shift.

        Parameters
        ----------
        near : a rotation, (3, 3), around which to search; None: all of them
        """
        near_by = None if near is None else torch.from_numpy(angles_between(self._even, near) <= NEAR).to(self.device)
        return self.align_turned(self.turn([template], near_by)[0], candidates)

    def align_turned(self, turned: Turned, candidates: Candidates) -> Aligned:
        """As `align`, with what `turn` made of the template."""
        if len(candidates) == 0:
            return Aligned.none(0)
        score, rotation, shift = self._search.best(turned, candidates.spectra, candidates.wedge)
        return Aligned(
            score=score.cpu().numpy().astype(np.float64),
            rotations=turned.rotations[rotation].cpu().numpy().astype(np.float64),
            shifts=(self._search.shifts[shift] * self.pixel).cpu().numpy().astype(np.float64),
        )

    def turn(self, templates: Sequence[Template], which: Tensor | None = None) -> list[Turned]:
        """Templates at the grid of rotations or, by a mask (R,), at some of them; several cost little more than one."""
        grid = self._grid if which is None else self._grid.only(which)
        turned = []
        for template, values in zip(templates, grid.read([one.spectrum for one in templates]), strict=True):
            whitened, known = _whitened(template, values, grid.frequencies)
            turned.append(self._search.turned(whitened, known, grid.rotations))
        return turned

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
        turned = self.frequencies @ rotations
        values, known = _whitened(template, read(template.spectrum, turned), turned)
        squares = spectra.abs().square()
        power = squares.sum(dim=1)[:, None] if known is None else torch.einsum("nrk,nk->nr", known, squares)
        power = power * (values.abs().square() @ wedge.measured(self.frequencies))
        moved = spectra[:, None] * phases(shifts, self.frequencies)
        products = torch.view_as_real(values).flatten(2) @ torch.view_as_real(moved).flatten(2).transpose(1, 2)
        return products * power.clamp(min=1e-12).rsqrt()[..., None]

    def _template(self, box: Tensor, wedge: Wedge | None, amplitude: Tensor) -> Template:
        return Template(spectrum=inner_spectrum(box, self.settings.limit), wedge=wedge, amplitude=amplitude)

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


def _whitened(template: Template, values: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor | None]:
    """A template's values (..., K) at turned frequencies, whitened, and how far they are known; unknown ones are 0.

    None stands for known everywhere.
    """
    whitened = values * (1 / template.amplitude)
    if template.wedge is None:
        return whitened, None
    known = template.wedge.measured(frequencies)
    return whitened * known, known


def _common(wedges: Sequence[Wedge]) -> Wedge | None:
    """What one or two particles leave unmeasured, the first one's; an average of more leaves nothing."""
    return None if len(wedges) > 2 else wedges[0]


def _ball(edge: int, radius: float) -> Tensor:
    ramp = torch.arange(edge) - edge // 2
    distance = torch.sqrt(ramp[:, None, None] ** 2 + ramp[None, :, None] ** 2 + ramp[None, None] ** 2)
    return ((radius + _MASK_FALL - distance) / _MASK_FALL).clamp(0, 1)
