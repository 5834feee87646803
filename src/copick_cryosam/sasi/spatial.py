"""Random rigid transforms (shift, rotation, flip) of windows, the same for a volume and for its labels.

Voxel index i of an axis of n voxels lies at i - (n - 1) / 2 from the window's centre, for odd and even n alike, and
transforms turn about that centre. What lies at p is moved to matrix p + shift. A transform that takes voxels onto
voxels (flips, quarter turns, whole shifts) moves them as they are; all others interpolate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.sasi.settings import AugmentSettings

_TOLERANCE = 1e-3
"""Voxels that a source may lie outside and still count as inside, for rounding."""


@dataclass(frozen=True, eq=False)
class Spatial:
    """One rigid transform for each window of a batch, kept on the CPU.

    Attributes
    ----------
    matrix : orthogonal, acting on (z, y, x) columns; float64, shape (B, 3, 3)
    shift : voxels, z, y, x; float64, shape (B, 3)
    """

    matrix: Tensor
    shift: Tensor

    def __len__(self) -> int:
        return len(self.matrix)

    @classmethod
    def draw(cls, count: int, settings: AugmentSettings, edge: int, generator: torch.Generator) -> Spatial:
        """Transforms at random.

        Parameters
        ----------
        count : B
        edge : voxels of a window; shifts are whole voxels up to a share of it
        generator : on the CPU
        """
        matrix = _rotations(count, settings.rotation, generator)
        if settings.flip:
            signs = 1 - 2 * torch.randint(2, (count, 3), generator=generator)
            matrix = matrix * signs[:, None, :]
        most = _largest_shift(edge, settings)
        shift = torch.randint(-most, most + 1, (count, 3), generator=generator).double()
        return cls(matrix, shift)

    @classmethod
    def identity(cls, count: int) -> Spatial:
        """Transforms that leave everything where it is."""
        return cls(torch.eye(3, dtype=torch.float64).repeat(count, 1, 1), torch.zeros(count, 3, dtype=torch.float64))

    def apply(
        self, x: Tensor, edge: int | None = None, mode: Literal["linear", "nearest"] = "linear", fill: float = 0.0
    ) -> Tensor:
        """The transformed windows, on the device and of the type of `x`.

        Parameters
        ----------
        x : shape (B, C, Z, Y, X)
        edge : e: of the result only the central cube of this edge, (B, C, e, e, e); none: of the shape of `x`. Whole
            voxels are cut where e is odd as the edges of `x` are, or even as they are; others are interpolated.
        mode : linear for volumes, nearest for labels
        fill : what comes from outside `x`
        """
        if x.ndim != 5 or len(x) != len(self):
            raise ValueError(f"windows: expected shape ({len(self)}, C, Z, Y, X), found {tuple(x.shape)}")
        shape = tuple(x.shape[2:]) if edge is None else (edge, edge, edge)
        result = x.new_empty((*x.shape[:2], *shape))
        rest = []
        for b in range(len(self)):
            moves = _whole_moves(self.matrix[b], self.shift[b], tuple(x.shape[2:]), shape)
            if moves is None:
                rest.append(b)
            else:
                result[b] = _move(x[b], *moves, fill)
        if rest:
            result[rest] = self._interpolate(x, rest, shape, mode, fill)
        return result

    def apply_labels(self, labels: Tensor, edge: int | None = None, fill: int = 0) -> Tensor:
        """`apply` for whole numbers, nearest: (B, Z, Y, X) -> (B, e, e, e)."""
        return self.apply(labels[:, None], edge, mode="nearest", fill=fill)[:, 0]

    def inside(self, shape: tuple[int, int, int], edge: int | None = None) -> Tensor:
        """Which voxels of the result of `apply` come from inside a window of `shape`; bool, (B, e, e, e)."""
        axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (shape if edge is None else 3 * (edge,))]
        found = torch.ones((len(self), *(len(axis) for axis in axes)), dtype=torch.bool)
        for n, index in zip(shape, _sources(self.matrix, self.shift, axes, shape), strict=True):
            found &= (index >= -_TOLERANCE) & (index <= n - 1 + _TOLERANCE)
        return found

    def _interpolate(self, x: Tensor, which: list[int], shape: tuple[int, ...], mode: str, fill: float) -> Tensor:
        """As `apply`, the windows `which` alone."""
        matrix, shift = (part[which].to(device=x.device, dtype=torch.float32) for part in (self.matrix, self.shift))
        axes = [torch.arange(n, dtype=torch.float32, device=x.device) - (n - 1) / 2 for n in shape]
        inside = tuple(x.shape[2:])
        # grid_sample wants x, y, z from -1 to 1, which are the centres of the first and last voxel (align_corners)
        grid = torch.stack(
            [
                index * (2 / max(n - 1, 1)) - 1
                for n, index in zip(inside, _sources(matrix, shift, axes, inside), strict=True)
            ][::-1],
            dim=-1,
        )
        # what lies outside is 0 in grid_sample
        sampled = F.grid_sample(
            x[which].float() - fill,
            grid,
            mode="bilinear" if mode == "linear" else "nearest",
            padding_mode="zeros",
            align_corners=True,
        )
        return (sampled + fill).to(x.dtype)


def cut_edge(edge: int, settings: AugmentSettings) -> int:
    """Edge of the cube to cut so that every transform drawn for windows of `edge` voxels fills them whole, voxels.

    √3 times as large where windows turn about all axes, √2 about one, and the shifts on both sides; odd or even as
    `edge` is, so that the centres agree.
    """
    spread = {"any": math.sqrt(3), "beam": math.sqrt(2), "quarter": 1.0, "none": 1.0}[settings.rotation]
    # from centre to centre of the outermost voxels
    least = math.ceil((edge - 1) * spread - 1e-9) + 1 + 2 * math.ceil(_largest_shift(edge, settings) * spread)
    return least + (least - edge) % 2


def _largest_shift(edge: int, settings: AugmentSettings) -> int:
    return math.floor(settings.shift * edge)


def _rotations(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Rotations of a kind of `AugmentSettings.rotation`; float64, shape (B, 3, 3)."""
    if kind == "any":
        w, a, b, c = F.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=1).unbind(1)
        rows = [
            [1 - 2 * (b * b + c * c), 2 * (a * b - c * w), 2 * (a * c + b * w)],
            [2 * (a * b + c * w), 1 - 2 * (a * a + c * c), 2 * (b * c - a * w)],
            [2 * (a * c - b * w), 2 * (b * c + a * w), 1 - 2 * (a * a + b * b)],
        ]
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    result = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    if kind == "beam":
        angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        result[:, 1, 1] = result[:, 2, 2] = angle.cos()
        result[:, 2, 1] = angle.sin()
        result[:, 1, 2] = -angle.sin()
    elif kind == "quarter":
        for one in result:
            signs = 1.0 - 2 * torch.randint(2, (3,), generator=generator).double()
            one.copy_(torch.diag(signs)[torch.randperm(3, generator=generator)])
            # a flip of the last axis makes rotations of the other half
            one[:, 2] *= torch.linalg.det(one).round()
    return result


def _sources(matrix: Tensor, shift: Tensor, axes: list[Tensor], inside: tuple[int, ...]) -> list[Tensor]:
    """Index along each axis of the input for every output voxel: matrix^T (q - shift) + centre; (B, Z, Y, X) each.

    Written without a matrix product, which autocast would round to bfloat16.
    """
    moved = [
        (axis[None] - shift[:, a, None]).reshape(len(shift), *(len(axis) if k == a else 1 for k in range(3)))
        for a, axis in enumerate(axes)
    ]
    return [
        sum((matrix[:, a, b, None, None, None] * moved[a] for a in range(3)), torch.zeros_like(moved[0])) + (n - 1) / 2
        for b, n in enumerate(inside)
    ]


def _whole_moves(
    matrix: Tensor, shift: Tensor, inside: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[list[int], list[Tensor]] | None:
    """For each axis of the input: the axis of the output that it becomes, and the indices read along it.

    None where the transform does not take voxels onto voxels.
    """
    if not bool(((matrix == 0) | (matrix.abs() == 1)).all()):
        return None
    becomes = [int(a) for a in matrix.abs().argmax(dim=0)]
    indices = []
    for b, n in enumerate(inside):
        a = becomes[b]
        q = torch.arange(shape[a], dtype=torch.float64) - (shape[a] - 1) / 2
        index = matrix[a, b] * (q - shift[a]) + (n - 1) / 2
        if bool((index != index.round()).any()):
            return None
        indices.append(index.long())
    return becomes, indices


def _move(x: Tensor, becomes: list[int], indices: list[Tensor], fill: float) -> Tensor:
    """Voxels as they are: x (C, Z, Y, X), read at `indices`, axes turned."""
    outside = None
    for b, index in enumerate(indices):
        n = x.shape[b + 1]
        x = x.index_select(b + 1, index.clamp(0, n - 1).to(x.device))
        beyond = ((index < 0) | (index >= n)).to(x.device).reshape([-1 if k == b else 1 for k in range(3)])
        outside = beyond if outside is None else outside | beyond
    assert outside is not None
    x = x.masked_fill(outside, fill)
    return x.permute(0, *(becomes.index(a) + 1 for a in range(3)))
