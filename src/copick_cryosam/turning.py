"""Spectra of boxes, and where the frequencies of one lie in another that is turned.

A template's transform is read at the frequencies of a candidate's box turned back by R. For an even grid of rotations
the places are the same for particles of all sizes, so they are worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.rotations import even_rotations

BOX_EDGE = 25
"""Samples along a box; odd, so that its centre is a sample."""
_OVERSAMPLING = 2
"""Of the template's spectrum, for linear interpolation between its samples."""
FINE_EDGE = BOX_EDGE * _OVERSAMPLING + 1
"""Samples along a template's spectrum, odd."""
RATIO = FINE_EDGE / BOX_EDGE
"""Of these samples per cycle per box."""


def half_space(limit: float) -> tuple[Tensor, Tensor]:
    """Frequencies (K, 3) of up to `limit` cycles per box, one of each Friedel pair, and their shells (K,)."""
    reach = int(limit)
    ramp = torch.arange(-reach, reach + 1)
    every = torch.cartesian_prod(ramp, ramp, ramp)
    length = every.double().norm(dim=1)
    sign = every[:, 0] * 10_000 + every[:, 1] * 100 + every[:, 2]
    kept = every[(length <= limit) & (sign > 0)]
    return kept.float(), kept.double().norm(dim=1).round().long()


def phases(shifts: Tensor, frequencies: Tensor) -> Tensor:
    """What moving a box by -shift, (..., S, 3) samples, multiplies its transform by, (..., S, K): exp(2 π i k s)."""
    return torch.exp(2j * math.pi / BOX_EDGE * (shifts @ frequencies.T))


def reach_of(limit: float) -> int:
    """Samples of a template's spectrum on either side of its middle that are read."""
    return min(math.ceil(limit * RATIO) + 1, FINE_EDGE // 2)


def inner_spectrum(box: Tensor, limit: float) -> Tensor:
    """Centred, oversampled transform of a box (E, E, E) about its centre, up to about `limit` cycles per box."""
    reach = reach_of(limit)
    padded = F.pad(box, ((FINE_EDGE - BOX_EDGE) // 2,) * 6)
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(padded)))
    inner = slice(FINE_EDGE // 2 - reach, FINE_EDGE // 2 + reach + 1)
    cut: Tensor = spectrum[inner, inner, inner].contiguous()
    return cut


def read(spectrum: Tensor, frequencies: Tensor) -> Tensor:
    """Values of a centred spectrum at frequencies (..., 3) in cycles per box, z, y, x; linear, 0 outside."""
    place = (frequencies * (RATIO / (spectrum.shape[0] // 2))).flip(-1).reshape(1, 1, 1, -1, 3)
    parts = torch.stack([spectrum.real, spectrum.imag])[None]
    found = F.grid_sample(parts, place, align_corners=True).reshape(2, *frequencies.shape[:-1])
    return torch.complex(found[0], found[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class TurnedGrid:
    """Where the frequencies of a half space lie in a spectrum that is turned.

    Attributes
    ----------
    rotations : (R, 3, 3)
    frequencies : turned back, (R, K, 3)
    corners : samples of the spectrum around each, indices of the flattened cube, (R K, 8)
    shares : of each, trilinear, (R K, 8)
    """

    rotations: Tensor
    frequencies: Tensor
    corners: Tensor
    shares: Tensor

    def read(self, spectra: Sequence[Tensor]) -> list[Tensor]:
        """Values of centred spectra at all places, complex (R, K) each; see `read`, which this does for any places."""
        flat = torch.stack([torch.view_as_real(one) for one in spectra], dim=3).flatten(3).flatten(0, 2)
        found = F.embedding_bag(self.corners, flat, per_sample_weights=self.shares, mode="sum")
        values = torch.view_as_complex(found.reshape(*self.frequencies.shape[:2], len(spectra), 2))
        return list(values.unbind(dim=2))

    def only(self, which: Tensor) -> TurnedGrid:
        """Some rotations, by a mask (R,)."""
        rows = which.repeat_interleave(self.frequencies.shape[1])
        return TurnedGrid(
            rotations=self.rotations[which],
            frequencies=self.frequencies[which],
            corners=self.corners[rows],
            shares=self.shares[rows],
        )


@lru_cache(maxsize=2)
def turned_grid(count: int, limit: float, device: torch.device) -> TurnedGrid:
    """`count` even rotations; they are the same for particles of all sizes."""
    rotations = torch.from_numpy(even_rotations(count)).float().to(device)
    frequencies = half_space(limit)[0].to(device) @ rotations
    reach = reach_of(limit)
    edge = 2 * reach + 1
    place = (frequencies * RATIO + reach).reshape(-1, 3)
    low = place.floor().clamp(0, edge - 2)
    part = place - low
    corners, shares = [], []
    for corner in torch.cartesian_prod(*[torch.arange(2, device=device)] * 3):
        z, y, x = (low.long() + corner).T
        corners.append((z * edge + y) * edge + x)
        shares.append(torch.where(corner == 1, part, 1 - part).prod(dim=1))
    return TurnedGrid(
        rotations=rotations,
        frequencies=frequencies,
        corners=torch.stack(corners, dim=1).int(),
        shares=torch.stack(shares, dim=1),
    )
