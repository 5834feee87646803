"""Features of three views of plane tokens, without ever making them dense (eqs. 3 to 6).

The planes across z, y and x are encoded one by one, each into a coarse picture of tokens. The feature of a voxel
is the concatenation of three vectors, one of each view, interpolated between the tokens of its plane. At a
vector per voxel that is terabytes, and it is never needed: interpolation is linear, so the dot product with a
query is an interpolation of the tokens' dot products, and the squared length one of the dot products between
neighbouring tokens. Both are numbers per token, and interpolating them is a pair of small matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from copick_cryosam.features import CellGrid, cell_weights, interpolation
from copick_cryosam.types import Instance

__all__ = ["PlaneTokens", "TokenFeatures"]

_SLAB = 1 << 22
"""Voxels (or coarse cells) whose similarity is worked out at once."""
_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Numbers of tokens turned into float32 at once: what stays in a CPU's cache, what fills a GPU."""


class PlaneTokens:
    """One view: a picture of tokens for each plane across an axis, and how they are interpolated.

    Parameters
    ----------
    axis : 0, 1 or 2, the axis that the planes are across; rows and columns are the other two in order
    tokens : shape (P, h, w, C), any float type, on any device
    rows : weights of the token rows at each point of the first other axis, float32, shape (R, h)
    columns : the same of the second other axis, shape (K, w)

    Notes
    -----
    A point's vector is ``v = sum_ij rows[r, i] columns[k, j] t[i, j]``. Its squared length is a sum over pairs of
    tokens, taken here by how far apart they are in rows (d) and columns (e). The weights of all pairs (i, i + d)
    are a matrix again, ``rows[r, i] rows[r, i + d]``, twice that for d > 0; with the dot products of the pairs as
    its token picture, the squared length is another interpolation. Linear interpolation has d, e of 0 and 1: four
    pictures, the squared lengths, the products with the next row and the next column, and half the sum of those
    along the two diagonals. Averages over several voxels reach a token further.
    """

    def __init__(self, axis: int, tokens: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.axis, self.tokens = axis, tokens
        self.rows, self.columns = rows.to(tokens.device), columns.to(tokens.device)
        reach = _reach(rows), _reach(columns)
        self._pair_rows, self._pair_columns = _pair_weights(self.rows, reach[0]), _pair_weights(self.columns, reach[1])
        self._pairs = torch.cat([_pair_products(part.float(), reach) for part in self._chunks()])

    @classmethod
    def of_planes(cls, axis: int, tokens: Tensor, plane: tuple[int, int], stride: tuple[float, float]) -> PlaneTokens:
        """Tokens at voxel resolution: a vector for each of the `plane`'s voxels, `stride` voxels per token.

        Half-pixel centres, clamped at the borders; a last token may hang over.
        """
        rows, columns = (
            _whole_interpolation(voxels, step, cells)
            for voxels, step, cells in zip(plane, stride, tokens.shape[1:3], strict=True)
        )
        return cls(axis, tokens, rows, columns)

    @property
    def channels(self) -> int:
        """Length of a token."""
        return int(self.tokens.shape[3])

    def dot(self, vector: Tensor) -> Tensor:
        """Dot product of every token with a vector of shape (C,): float32, shape (P, h, w)."""
        return torch.cat([part.float() @ vector for part in self._chunks()])

    def spread(self, dots: Tensor, where: slice) -> Tensor:
        """Dot products interpolated to all points whose z is in `where`, shape (z, y, x)."""
        return self._interpolate(dots, self.rows, self.columns, where)

    def squared_lengths(self, where: slice) -> Tensor:
        """Squared length of the interpolated vector at all points whose z is in `where`, shape (z, y, x)."""
        return self._interpolate(self._pairs, self._pair_rows, self._pair_columns, where)

    def weighted_sum(self, weights: Tensor, start: Sequence[int]) -> Tensor:
        """Sum of the vectors of a box of points, each times its weight: float64 on the CPU, shape (C,).

        Parameters
        ----------
        weights : shape (z, y, x); its first point is `start`
        """
        points = weights.to(self.tokens.device).movedim(self.axis, 0)
        first = start[self.axis]
        above, left = (n for axis, n in enumerate(start) if axis != self.axis)
        rows = self.rows[above : above + points.shape[1]]
        columns = self.columns[left : left + points.shape[2]]
        i, j = _used(rows), _used(columns)
        of_tokens = torch.einsum("prc,ri,cj->pij", points, rows[:, i], columns[:, j])
        part = self.tokens[first : first + len(points), i, j].float()
        return torch.einsum("pijc,pij->c", part, of_tokens).double().cpu()

    def averaged(self, factor: int) -> PlaneTokens:
        """The view whose vectors are means over blocks of `factor` points on every axis; the last may be smaller.

        The means go into the tokens across the planes, and within them where that leaves fewer tokens; elsewhere
        into the weights. So there are at least `factor` times fewer tokens.
        """
        rows, columns = _block_means(self.rows, factor), _block_means(self.columns, factor)
        fewer = len(rows) < rows.shape[1], len(columns) < columns.shape[1]
        coarse = []
        for some in torch.split(self.tokens, factor):
            one = torch.tensordot(rows.new_full((len(some),), 1 / len(some)), some.float(), 1)
            if fewer[0]:
                one = torch.einsum("gh,hwc->gwc", rows, one)
            if fewer[1]:
                one = torch.einsum("gw,hwc->hgc", columns, one)
            coarse.append(one.to(self.tokens.dtype))
        return PlaneTokens(
            self.axis,
            torch.stack(coarse),
            torch.eye(len(rows)) if fewer[0] else rows,
            torch.eye(len(columns)) if fewer[1] else columns,
        )

    def _interpolate(self, pictures: Tensor, rows: Tensor, columns: Tensor, where: slice) -> Tensor:
        if self.axis == 0:
            lines = rows @ pictures[where]
        else:
            # the rows are along z: the planes become the rows (x across y) or the columns (y across x)
            lines = torch.einsum("nh,phw->npw" if self.axis == 1 else "nh,phw->nwp", rows[where], pictures)
        return columns @ lines if self.axis == 2 else lines @ columns.T

    def _chunks(self) -> Iterator[Tensor]:
        planes = max(1, _CHUNK[self.tokens.device.type] // self.tokens[0].numel())
        yield from torch.split(self.tokens, planes)


class TokenFeatures:
    """Features held as tokens of three views; `Features` on a grid of any stride.

    Parameters
    ----------
    views : of the planes across z, y and x, their points the cells of `lattice`
    lattice : where the vectors are interpolated, the voxels themselves or (see `pooled`) blocks of them
    block : cells of the lattice on each axis that make one cell of `grid`

    Notes
    -----
    `similarity` is the mean over a cell's voxels of the cosine at each of them: no detail is lost in between, and
    the voxel map itself where `block` is 1. `pooled` averages the vectors, as eq. 5 says, and takes the cosine
    of the mean. The two agree at one voxel per cell; elsewhere the mean vector of a cell that holds a border
    resembles either side more than its voxels do.

    Memory beyond the tokens: 16 bytes per token for lengths, and while it works about six float32 slabs of `_SLAB`
    voxels (or of `block` planes, where those are more) and two of `_CHUNK` numbers, whatever the depth of
    the tomogram. `pooled` keeps new tokens, fewer by its factor at least.
    """

    centre: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None

    def __init__(self, views: Sequence[PlaneTokens], lattice: CellGrid, block: int = 1) -> None:
        self.views, self._lattice, self._block = tuple(views), lattice, block
        self.grid = lattice.coarser(block)

    @classmethod
    def of_volume(
        cls,
        tokens: Sequence[Tensor],
        strides: Sequence[tuple[float, float]],
        extent: tuple[int, int, int],
        stride: int = 1,
    ) -> TokenFeatures:
        """Features of a tomogram from the tokens of its z, y and x planes.

        Parameters
        ----------
        tokens : for each axis, shape (planes, h, w, C): every plane across the axis, its rows and columns the
            other two axes in order
        strides : for each axis, voxels per token down the rows and along the columns
        extent : shape of the tomogram, voxels z, y, x
        stride : voxels per cell of the features' grid, on every axis
        """
        views = []
        for axis, (of_axis, step) in enumerate(zip(tokens, strides, strict=True)):
            height, width = (n for other, n in enumerate(extent) if other != axis)
            if len(of_axis) != extent[axis]:
                raise ValueError(f"tokens: expected {extent[axis]} planes across axis {axis}, found {len(of_axis)}")
            views.append(PlaneTokens.of_planes(axis, of_axis, (height, width), step))
        return cls(views, CellGrid(extent, (1, 1, 1), extent), stride)

    def pool(self, instances: Sequence[Instance]) -> NDArray[np.float32]:
        """See `Features.pool`. Only the planes and tokens that the masks touch are read."""
        totals = [torch.zeros(view.channels, dtype=torch.float64) for view in self.views]
        count = 0
        for one in instances:
            if one.size == 0:
                continue
            box, weights = cell_weights(one, self._lattice)
            for view, total in zip(self.views, totals, strict=True):
                total += view.weighted_sum(weights, [part.start for part in box])
            count += one.size
        if count == 0:
            raise ValueError("pool: expected at least one voxel in the masks, found none")
        return np.asarray(torch.cat(totals) / count, dtype=np.float32)

    def similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Features.similarity`."""
        result = np.empty(self.grid.shape, dtype=np.float32)
        dots = self._dots(query)
        for cells in self._slabs():
            result[cells] = self._cosine(dots, cells)
        return result

    def similarity_at(self, query: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Features.similarity_at`. Only the slabs that hold some of the cells are worked out."""
        result = np.empty(len(cells), dtype=np.float32)
        dots = self._dots(query)
        z, within = np.divmod(cells, self.grid.shape[1] * self.grid.shape[2])
        for slab in self._slabs():
            here = (z >= slab.start) & (z < slab.stop)
            if here.any():
                part = self._cosine(dots, slice(int(z[here].min()), int(z[here].max()) + 1))
                result[here] = part.reshape(len(part), -1)[z[here] - z[here].min(), within[here]]
        return result

    def pooled(self, factor: int) -> TokenFeatures:
        """See `Features.pooled`: the mean vector over each block, however many voxels that is."""
        voxels = factor * self._block
        if voxels == 1:
            return self
        return TokenFeatures([view.averaged(voxels) for view in self.views], self._lattice.coarser(voxels))

    def _dots(self, query: NDArray[np.float32]) -> list[Tensor]:
        """The query, one unit long, projected on: a map of every view's tokens."""
        sizes = [view.channels for view in self.views]
        if query.shape != (sum(sizes),):
            raise ValueError(f"query: expected shape ({sum(sizes)},), found {query.shape}")
        unit = F.normalize(torch.from_numpy(query).float(), dim=0)
        return [
            view.dot(part.to(view.tokens.device))
            for view, part in zip(self.views, torch.split(unit, sizes), strict=True)
        ]

    def _cosine(self, dots: Sequence[Tensor], cells: slice) -> NDArray[np.float32]:
        """Similarity of the cells whose z is in `cells`."""
        points = slice(cells.start * self._block, cells.stop * self._block)
        along: Tensor | None = None
        squared: Tensor | None = None
        for view, one in zip(self.views, dots, strict=True):
            along = view.spread(one, points) if along is None else along.add_(view.spread(one, points))
            lengths = view.squared_lengths(points)
            squared = lengths if squared is None else squared.add_(lengths)
        assert along is not None
        assert squared is not None
        # rounding can leave a vanishing length below 0
        cosine = along.div_(squared.clamp_(min=1e-12).sqrt_()).clamp_(-1, 1)
        if self._block > 1:
            kernel = [min(self._block, n) for n in cosine.shape]
            cosine = F.avg_pool3d(cosine[None], kernel, ceil_mode=True)[0]
        return np.asarray(cosine.cpu().numpy(), dtype=np.float32)

    def _slabs(self) -> Iterator[slice]:
        """Ranges of z of the grid."""
        points = self._block * self._lattice.shape[1] * self._lattice.shape[2]
        depth = max(1, _SLAB // points)
        for start in range(0, self.grid.shape[0], depth):
            yield slice(start, min(start + depth, self.grid.shape[0]))


def _whole_interpolation(voxels: int, stride: float, cells: int) -> Tensor:
    first, matrix = interpolation(0, voxels, stride, cells)
    return F.pad(matrix, (first, cells - first - matrix.shape[1]))


def _block_means(weights: Tensor, factor: int) -> Tensor:
    return torch.stack([block.mean(0) for block in torch.split(weights, factor)])


def _reach(weights: Tensor) -> int:
    """The most tokens, from the first to the last, that any point is made of."""
    used = weights != 0
    first, last = used.int().argmax(1), used.shape[1] - used.flip(1).int().argmax(1)
    return int((last - first).max())


def _used(weights: Tensor) -> slice:
    used = torch.nonzero(weights.any(0)).flatten()
    return slice(int(used[0]), int(used[-1]) + 1)


def _pair_weights(weights: Tensor, reach: int) -> Tensor:
    """Weights of the pairs of tokens 0, 1 .. `reach` - 1 apart, side by side: (R, h + (h - 1) + ...)."""
    count = weights.shape[1]
    return torch.cat(
        [(2 if apart else 1) * weights[:, : count - apart] * weights[:, apart:] for apart in range(reach)], dim=1
    )


def _pair_products(tokens: Tensor, reach: tuple[int, int]) -> Tensor:
    """Dot products of the pairs, laid out as `_pair_weights` lays out rows and columns.

    All tokens of a row with all of another are one matrix product, faster than the few that are needed one by one.
    """
    height = tokens.shape[1]
    pictures = []
    for down in range(reach[0]):
        products = tokens[:, : height - down] @ tokens[:, down:].transpose(2, 3)
        across = []
        for right in range(reach[1]):
            one = products.diagonal(right, 2, 3)
            if down and right:
                # the weights count such a pair four times, for two pairs along each of the diagonals
                one = (one + products.diagonal(-right, 2, 3)) / 2
            across.append(one)
        pictures.append(torch.cat(across, dim=2))
    return torch.cat(pictures, dim=1)
