"""Particle densities of our own: endless random complexes, by family, and maps read from MRC files.

A density is a cube of float32 at the simulator's voxel spacing, 0 in solvent and about 1 in
protein, centred on its centre of mass. The families imitate what complexes look like at 20 Å:
lumps of domains, barrels, hollow shells, rods, arches and symmetric assemblies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from copick_cryosam.pretraining.placing import around, copies_around, corners_of, facing, random_direction, walk

FloatVolume = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Shape:
    """One kind of particle.

    Attributes
    ----------
    density : float32, cube, axes z, y, x
    mask : bool, as `density`: the molecular envelope, cavities narrower than about 3 voxels filled
    radius : voxels; of the sphere that holds 95% of the envelope around the centre of mass
    """

    name: str
    family: str
    density: FloatVolume
    mask: NDArray[np.bool_]
    radius: float


def _render(points: NDArray[np.float64], sigmas: NDArray[np.float64], weights: NDArray[np.float64]) -> FloatVolume:
    """Sum of Gaussians at `points` (voxels from the centre, zyx), each on the few voxels that it reaches."""
    reach = float(np.abs(points).max() + 4 * sigmas.max())
    half = int(np.ceil(reach))
    axis = np.arange(-half, half + 1, dtype=np.float64)
    gz, gy, gx = (np.exp(-((axis[None] - points[:, k : k + 1]) ** 2) / (2 * sigmas[:, None] ** 2)) for k in range(3))
    return np.asarray(np.einsum("n,nz,ny,nx->zyx", weights, gz, gy, gx, optimize=True), dtype=np.float32)


def finish(name: str, family: str, density: FloatVolume) -> Shape:
    """Normalise a raw density, centre it on its centre of mass and cut it to the cube that holds it."""
    density = np.clip(density, 0, None)
    density = density / max(float(np.percentile(density[density > 0.02 * density.max()], 90)), 1e-6)
    density = np.clip(density, 0, 1.5).astype(np.float32)
    density[density < 0.02] = 0
    centre = np.array(ndimage.center_of_mass(density))
    found = np.argwhere(density > 0.05)
    half = int(np.ceil(np.abs(found - centre).max())) + 2
    padded = np.pad(density, half + 1)
    shift = np.array(padded.shape) / 2 - 0.5 - (centre + half + 1)
    padded = ndimage.shift(padded, shift, order=1, prefilter=False)
    middle = [n // 2 for n in padded.shape]
    # an odd edge gives the cube a central voxel; an even one was centred between two
    cube = padded[tuple(slice(m - half, m + half + 1) for m in middle)]
    if padded.shape[0] % 2 == 0:
        cube = ndimage.shift(cube, (0.5,) * 3, order=1, prefilter=False)
    smooth = ndimage.gaussian_filter(cube, 1.5)
    mask = ndimage.binary_fill_holes(smooth > 0.25 * np.percentile(smooth[cube > 0.3], 90))
    assert mask is not None
    distance = np.linalg.norm(np.argwhere(mask) - (np.array(cube.shape) - 1) / 2, axis=1)
    return Shape(
        name=name,
        family=family,
        density=cube.astype(np.float32),
        mask=mask.astype(bool),
        radius=float(np.percentile(distance, 95)),
    )


Cloud = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Domain centres in units of the particle's radius, and their Gaussian widths in the same unit."""

Families = Mapping[str, Callable[[np.random.Generator], Cloud]]
"""How each family of shapes draws its domains."""


def _globule(rng: np.random.Generator) -> Cloud:
    count = int(rng.integers(4, 26))
    points = walk(rng, count, 0.5) * rng.uniform(0.6, 1.4, size=3)
    return points, rng.uniform(0.16, 0.32, size=count)


def _barrel(rng: np.random.Generator) -> Cloud:
    fold, rings = int(rng.integers(5, 15)), int(rng.integers(1, 6))
    height = rng.uniform(0.4, 0.6)
    points = []
    for ring in range(rings):
        radius = rng.uniform(0.45, 1.0)
        offset = rng.uniform(0, 2 * np.pi)
        points.append(around((ring - (rings - 1) / 2) * height, radius, corners_of(fold) + offset))
    cloud = np.concatenate(points)
    return cloud, np.full(len(cloud), rng.uniform(0.16, 0.24))


def _shell(rng: np.random.Generator) -> Cloud:
    count = int(rng.integers(24, 90))
    index = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * index / count), np.pi * (1 + 5**0.5) * index
    points = np.stack([np.cos(polar), np.sin(polar) * np.sin(turn), np.sin(polar) * np.cos(turn)], axis=1)
    points *= rng.uniform(0.75, 1.25, size=3) * rng.uniform(0.96, 1.04, size=(count, 1))
    keep = points[:, 0] < rng.choice([2.0, 2.0, rng.uniform(-0.2, 0.9)])
    return points[keep], np.full(int(keep.sum()), rng.uniform(0.12, 0.2))


def _rod(rng: np.random.Generator) -> Cloud:
    count = int(rng.integers(4, 12))
    along = np.linspace(-1.4, 1.4, count)
    bend = rng.uniform(0, 0.5)
    side = rng.uniform(0.1, 0.35)
    turn = along * rng.uniform(0, 4)
    points = np.stack([along, side * np.sin(turn) + bend * along**2, side * np.cos(turn)], axis=1)
    return points, rng.uniform(0.18, 0.34, size=count)


def _arch(rng: np.random.Generator) -> Cloud:
    arms = int(rng.integers(2, 5))
    points = [np.zeros((1, 3))]
    for arm in range(arms):
        direction = random_direction(rng)
        points.append(np.linspace(0.4, rng.uniform(0.8, 1.4), 3)[:, None] * direction + 0.05 * arm)
    cloud = np.concatenate(points)
    return cloud, rng.uniform(0.18, 0.3, size=len(cloud))


def _assembly(rng: np.random.Generator) -> Cloud:
    fold = int(rng.integers(2, 9))
    unit = walk(rng, int(rng.integers(2, 7)), 0.42) * 0.8 + np.array([0, rng.uniform(0.2, 0.9), 0])
    cloud = copies_around(unit, fold)
    if rng.random() < 0.5:  # dihedral
        cloud = facing(cloud, rng.uniform(0.0, 0.5))
    return cloud, np.full(len(cloud), rng.uniform(0.18, 0.3))


def _capped(rng: np.random.Generator) -> Cloud:
    core, widths = _barrel(rng)
    cap = walk(rng, int(rng.integers(4, 10)), 0.4)
    caps = [cap + np.array([core[:, 0].max() + 0.5, 0, 0])]
    if rng.random() < 0.5:
        caps.append(-caps[0])
    cloud = np.concatenate([core, *caps])
    return cloud, np.concatenate([widths, np.full(len(cloud) - len(core), 0.22)])


FAMILIES: Families = {
    "globule": _globule,
    "barrel": _barrel,
    "shell": _shell,
    "rod": _rod,
    "arch": _arch,
    "assembly": _assembly,
    "capped": _capped,
}


def random_shape(
    rng: np.random.Generator,
    *,
    family: str | None = None,
    radius: float | None = None,
    name: str = "shape",
    lump: float | None = None,
    families: Families = FAMILIES,
) -> Shape:
    """A new complex.

    Parameters
    ----------
    family : one of `families`; drawn at random when None
    radius : voxels, about the radius of the result; drawn from 4 to 15 when None, small ones more often
    lump : voxels; domains are broken into lumps of about this Gaussian width, as those of large complexes are;
        None: into one to three whatever their size
    """
    family = family or str(rng.choice(sorted(families)))
    radius = radius or float(np.exp(rng.uniform(np.log(4.5), np.log(15))))
    points, widths = families[family](rng)
    points = points - points.mean(axis=0)
    outer = np.percentile(np.linalg.norm(points, axis=1) + 1.3 * widths, 95)
    scale = radius / outer
    # domains are lumpy themselves: two or three sub-lumps each, at about 20 Å
    lumps = int(rng.integers(1, 4))
    if lump is not None:
        lumps = max(lumps, min(12, round((float(np.median(widths)) * scale / lump) ** 3)))
    sites = np.repeat(points, lumps, axis=0) * scale
    sigma = np.repeat(widths, lumps) * scale
    sites = sites + rng.normal(size=sites.shape) * sigma[:, None] * (0.7 if lumps > 1 else 0.0)
    narrower = (0.75 if lumps > 1 else 1.0) if lump is None else max(0.55, lumps ** (-1 / 3))
    sigma = np.maximum(sigma * narrower, 0.9)
    weights = rng.uniform(0.6, 1.4, size=len(sites))
    return finish(name, family, _render(sites, sigma, weights))


def read_shape(path: Path) -> Shape:
    """A density from an MRC file of 10 Å voxels: clipped at 0, normalised to a robust maximum, centred."""
    import mrcfile

    with mrcfile.open(path, permissive=True) as file:
        density = np.asarray(file.data, dtype=np.float32)
    return finish(path.stem, "map", density)
