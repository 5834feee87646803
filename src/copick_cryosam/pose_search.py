"""The best poses of candidates among the rotations of a grid and small shifts, in two passes.

Nearly all time of the second look would go into products of a template at every rotation with every candidate at every
shift. What fits in one pose fits nearly as well in the poses beside it, and low frequencies tell most of it. So the
first pass takes every rotation at some of the shifts and without the highest frequencies, the second one all shifts and
all frequencies at the rotations that were best.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.aligned import Turned
from copick_cryosam.turning import phases
from copick_cryosam.wedge import Wedge

KEPT = 64
"""Rotations of each candidate that the second pass compares."""
_LOWER = 5 / 6
"""Of the highest frequency compared, up to which the first pass does."""
_AT_ONCE = 64
"""Candidates whose templates are gathered at once: a few megabytes, which stay in the cache."""


class PoseSearch:
    """Where candidates fit turned templates best.

    Parameters
    ----------
    frequencies : that are compared, cycles per box, (K, 3)
    shift : steps of one sample along each axis, both ways
    dtype : in which poses are sought
    """

    def __init__(self, frequencies: Tensor, shift: int, dtype: torch.dtype) -> None:
        steps = torch.arange(-shift, shift + 1).float()
        self.shifts = torch.cartesian_prod(steps, steps, steps).to(frequencies.device)
        self._frequencies = frequencies
        self._dtype = dtype
        lengths = frequencies.norm(dim=1)
        self._lower = torch.nonzero(lengths <= _LOWER * float(lengths.max()))[:, 0]
        self._phases = phases(self.shifts, frequencies)
        self._few = self._phases[spread(self.shifts)][:, self._lower]

    def turned(self, values: Tensor, known: Tensor | None, rotations: Tensor) -> Turned:
        """A template for `best`; see `Turned` for what is given."""
        return Turned(
            values=values,
            known=known,
            rotations=rotations,
            # of complex numbers, their absolute values take several times as long
            squares=values.real.square() + values.imag.square(),
            rounded=self._parts(values),
            lower=self._parts(values.index_select(1, self._lower)),
        )

    def best(self, turned: Turned, spectra: Tensor, wedge: Wedge) -> tuple[Tensor, Tensor, Tensor]:
        """Best correlation of each candidate, and the indices of its rotation and shift; (N,) each.

        Parameters
        ----------
        spectra : of the candidates, complex (N, K), N >= 1
        wedge : of their tomogram
        """
        power = turned.power(spectra, wedge.measured(self._frequencies))
        norm = power.clamp(min=1e-12).rsqrt()
        rounded = norm.T.to(self._dtype)
        found = [
            self._poses(turned, some, norms)
            for some, norms in zip(torch.split(spectra, _AT_ONCE), torch.split(rounded, _AT_ONCE), strict=True)
        ]
        rotation, shift = (torch.cat(each) for each in zip(*found, strict=True))
        # which pose is best bears rounding; how good it is must not depend on it
        products = (turned.values[rotation].conj() * spectra * self._phases[shift]).real.sum(dim=1)
        return products * norm[rotation, torch.arange(len(spectra), device=spectra.device)], rotation, shift

    def _poses(self, turned: Turned, spectra: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations and shifts of some candidates; `norm` is one over the products' power, (N, R)."""
        moved = self._parts(spectra[:, None, self._lower] * self._few)
        coarse = (moved.flatten(0, 1) @ turned.lower.T).reshape(*moved.shape[:2], -1).amax(dim=1) * norm
        kept = coarse.float().topk(min(KEPT, coarse.shape[1]), dim=1, sorted=False).indices
        templates = F.embedding(kept, turned.rounded)
        moved = self._parts(spectra[:, None] * self._phases)
        products = (moved @ templates.transpose(1, 2)) * norm.gather(1, kept)[:, None]
        best = products.flatten(1).argmax(dim=1)
        return kept.gather(1, best[:, None] % kept.shape[1])[:, 0], best // kept.shape[1]

    def _parts(self, values: Tensor) -> Tensor:
        """Real and imaginary parts side by side, (..., K) -> (..., 2 K)."""
        return torch.view_as_real(values).to(self._dtype).flatten(-2)


def spread(shifts: Tensor) -> Tensor:
    """Indices of the shifts, (S, 3), whose coordinates are all even or all odd: every other is one step from one."""
    odd = (shifts.long() % 2).sum(dim=1)
    return torch.nonzero((odd == 0) | (odd == 3))[:, 0]
