"""Simulated specimens: particles at random poses, crowded, among membranes, filaments and gold beads.

A specimen is a density with its truth: which voxel belongs to which particle, of which kind, in which
pose. `imaging.reconstruct` makes a tomogram of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.pretraining.imaging import Imaging, reconstruct
from copick_cryosam.pretraining.placing import random_direction
from copick_cryosam.pretraining.shapes import Shape

MARGIN = 28
"""Voxels added on both sides in x for the tilt series and cut off afterwards."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in a specimen.

    Attributes
    ----------
    shape_zyx : voxels
    counts : how many of each kind to try to place
    membranes, filaments, beads : how many of each
    gap : voxels kept free between envelopes
    """

    shape_zyx: tuple[int, int, int]
    counts: tuple[int, ...]
    membranes: int = 0
    filaments: int = 0
    beads: int = 0
    gap: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Specimen:
    """A density and its truth.

    Attributes
    ----------
    density : float32, shape (Z, Y, X)
    labels : uint16, as `density`; 0 is none, particle i has label i + 1
    clutter : bool, as `density`: membranes, filaments, beads
    kinds : int, shape (N,): index into the shapes given to `build`
    centres_zyx : float64, shape (N, 3), voxels
    rotations : float64, shape (N, 3, 3), acting on (z, y, x) columns
    radii : float64, shape (N,), voxels
    """

    density: NDArray[np.float32]
    labels: NDArray[np.uint16]
    clutter: NDArray[np.bool_]
    kinds: NDArray[np.int64]
    centres_zyx: NDArray[np.float64]
    rotations: NDArray[np.float64]
    radii: NDArray[np.float64]


def build(scene: Scene, shapes: Sequence[Shape], rng: np.random.Generator) -> Specimen:
    """Place clutter first, then particles, largest kind first, wherever they fit without overlap."""
    depth, height, width = scene.shape_zyx
    size = (depth, height, width + 2 * MARGIN)
    density = np.zeros(size, dtype=np.float32)
    for _ in range(scene.membranes):
        density = np.maximum(density, _membrane(size, rng))
    for _ in range(scene.filaments):
        density = np.maximum(density, _filament(size, rng))
    clutter = density > 0.15
    beads = np.zeros(size, dtype=np.float32)
    for _ in range(scene.beads):
        _add_bead(beads, rng)
    clutter |= beads > 0.5
    density += beads
    taken = ndimage.binary_dilation(clutter, iterations=1) if clutter.any() else clutter.copy()
    labels = np.zeros(size, dtype=np.uint16)
    kinds: list[int] = []
    centres: list[NDArray[np.float64]] = []
    rotations: list[NDArray[np.float64]] = []
    radii: list[float] = []
    for kind in sorted(range(len(shapes)), key=lambda k: -shapes[k].radius):
        # the margin is populated at the same density, so that the cut edge looks like the middle
        wanted = round(scene.counts[kind] * size[2] / width)
        for _ in range(wanted * 4):
            if wanted == 0:
                break
            placed = _try_place(shapes[kind], density, labels, taken, len(kinds) + 1, scene.gap, rng)
            if placed is not None:
                kinds.append(kind)
                centres.append(placed[0])
                rotations.append(placed[1])
                radii.append(shapes[kind].radius)
                wanted -= 1
    return _cut(density, labels, clutter, kinds, centres, rotations, radii)


def simulate(
    scene: Scene, shapes: Sequence[Shape], imaging: Imaging, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Specimen]:
    """A tomogram, float32 standardised and particles bright, and the specimen in it."""
    specimen = build(scene, shapes, rng)
    return tomogram_of(specimen, imaging, rng), specimen


def tomogram_of(specimen: Specimen, imaging: Imaging, rng: np.random.Generator) -> NDArray[np.float32]:
    """A new tomogram of a specimen (other noise, other conditions)."""
    volume = reconstruct(specimen.density, imaging, rng)[:, :, MARGIN:-MARGIN]
    volume = volume - volume.mean()
    return np.ascontiguousarray(volume / volume.std(), dtype=np.float32)


def crop_truth(specimen: Specimen) -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.int64]]:
    """Labels and clutter without the margin, and the indices of the particles whose centre is inside."""
    inner = specimen.labels[:, :, MARGIN:-MARGIN]
    width = inner.shape[2]
    x = specimen.centres_zyx[:, 2] - MARGIN if len(specimen.centres_zyx) else np.zeros(0)
    inside = np.flatnonzero((x > -0.5) & (x < width - 0.5))
    return inner, specimen.clutter[:, :, MARGIN:-MARGIN], inside


def centres_inside(specimen: Specimen, kind: int | None = None) -> NDArray[np.float64]:
    """True centres in voxels (z, y, x) of the tomogram, of one kind or of all, shape (N, 3)."""
    _, _, inside = crop_truth(specimen)
    if kind is not None:
        inside = inside[specimen.kinds[inside] == kind]
    return np.asarray(specimen.centres_zyx[inside].reshape(-1, 3) - np.array([0, 0, MARGIN]))


def _try_place(
    shape: Shape,
    density: NDArray[np.float32],
    labels: NDArray[np.uint16],
    taken: NDArray[np.bool_],
    label: int,
    gap: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Turn the shape, drop it somewhere; paint it if it is free there. Returns its centre and rotation."""
    reach = min(shape.radius * 0.8, density.shape[0] / 2 - 1)
    low = np.array([reach, 0.0, 0.0])
    high = np.array(density.shape) - 1 - low
    centre = rng.uniform(low, high)
    if taken[tuple(np.round(centre).astype(int))]:
        return None
    rotation = Rotation.random(random_state=rng).as_matrix()
    edge = int(np.ceil((shape.density.shape[0] // 2) * 1.0))
    corner = np.round(centre).astype(int) - edge
    offset = (np.array(shape.density.shape) - 1) / 2 - rotation.T @ (centre - corner)
    cube = (2 * edge + 1,) * 3
    mask = ndimage.affine_transform(shape.mask.astype(np.float32), rotation.T, offset, cube, order=1) > 0.5
    inside, local = _overlap(corner, cube, density.shape)
    mask = mask[local]
    if mask.sum() < 0.5 * shape.mask.sum():  # too little of it lies in the volume
        return None
    grown = ndimage.binary_dilation(mask, iterations=gap) if gap else mask
    if (taken[inside] & grown).any():
        return None
    turned = ndimage.affine_transform(shape.density, rotation.T, offset, cube, order=1)[local]
    density[inside] = np.maximum(density[inside], turned)
    labels[inside][mask] = label
    taken[inside] |= mask
    return centre, rotation


def _overlap(
    corner: NDArray[np.int64], cube: tuple[int, int, int], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a box that lies in the volume: its slices in the volume and in the box."""
    start = np.maximum(corner, 0)
    stop = np.minimum(corner + np.array(cube), shape)
    return (
        tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)),
        tuple(slice(int(a - c), int(b - c)) for a, b, c in zip(start, stop, corner, strict=True)),
    )


def _cut(
    density: NDArray[np.float32],
    labels: NDArray[np.uint16],
    clutter: NDArray[np.bool_],
    kinds: list[int],
    centres: list[NDArray[np.float64]],
    rotations: list[NDArray[np.float64]],
    radii: list[float],
) -> Specimen:
    return Specimen(
        density=density,
        labels=labels,
        clutter=clutter,
        kinds=np.array(kinds, dtype=np.int64),
        centres_zyx=np.array(centres, dtype=np.float64).reshape(-1, 3),
        rotations=np.array(rotations, dtype=np.float64).reshape(-1, 3, 3),
        radii=np.array(radii, dtype=np.float64),
    )


def _membrane(size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """A vesicle or a sheet (a vesicle of large radius), two leaflets, gently undulating."""
    radius = float(np.exp(rng.uniform(np.log(18), np.log(200))))
    direction = random_direction(rng)
    through = rng.uniform(0, 1, size=3) * np.array(size)
    centre = through - direction * radius
    bumps = ndimage.zoom(rng.normal(size=[max(2, n // 24) for n in size]).astype(np.float32), 1, order=1)
    waves = ndimage.zoom(bumps, [n / m for n, m in zip(size, bumps.shape, strict=True)], order=1)
    z, y, x = np.ogrid[: size[0], : size[1], : size[2]]
    distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - radius
    distance = distance + waves[: size[0], : size[1], : size[2]] * rng.uniform(0, 2)
    half, width = rng.uniform(1.4, 2.2), rng.uniform(0.6, 0.9)
    leaflets = np.exp(-((np.abs(distance) - half) ** 2) / (2 * width**2))
    return np.asarray(leaflets * rng.uniform(0.4, 1.0), dtype=np.float32)


def _filament(size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Actin-like (thin, solid) or microtubule-like (wide, hollow), slightly bent."""
    start, stop = rng.uniform(0, 1, size=(2, 3)) * np.array(size)
    axis = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-6)
    side = np.cross(axis, rng.normal(size=3))
    side /= max(float(np.linalg.norm(side)), 1e-6)
    z, y, x = np.ogrid[: size[0], : size[1], : size[2]]
    along = (z - start[0]) * axis[0] + (y - start[1]) * axis[1] + (x - start[2]) * axis[2]
    bend = rng.uniform(-0.001, 0.001) * along**2
    rest = [(c - s) - along * a - bend * d for c, s, a, d in zip((z, y, x), start, axis, side, strict=True)]
    distance = np.sqrt(rest[0] ** 2 + rest[1] ** 2 + rest[2] ** 2)
    if rng.random() < 0.3:
        ring = np.exp(-((distance - rng.uniform(8, 12)) ** 2) / (2 * 1.6**2))
        return np.asarray(ring, dtype=np.float32)
    lumps = 1 + 0.3 * np.sin(along * rng.uniform(0.8, 1.6))
    return np.asarray(np.exp(-(distance**2) / (2 * rng.uniform(1.5, 3.0) ** 2)) * lumps, dtype=np.float32)


def _add_bead(density: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A gold bead: a dense ball of 3 to 6 voxels radius, added where it falls."""
    radius = rng.uniform(2.5, 5.5)
    half = int(np.ceil(radius)) + 1
    centre = rng.uniform(0, 1, size=3) * np.array(density.shape)
    corner = np.round(centre).astype(int) - half
    cube = (2 * half + 1,) * 3
    inside, local = _overlap(corner, cube, density.shape)
    index = np.indices(cube) + corner[:, None, None, None] - centre[:, None, None, None]
    ball = 1 / (1 + np.exp((np.sqrt((index**2).sum(axis=0)) - radius) * 2))
    density[inside] += (ball * rng.uniform(4, 10)).astype(np.float32)[local]
