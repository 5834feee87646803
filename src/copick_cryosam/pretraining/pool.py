"""An endless supply of training samples: a worker simulates into a folder, trainings draw from it.

    python -m copick_cryosam.pretraining.pool --folder FOLDER --count 800 --seed 0 [--templates FOLDER]

A sample is a pair of tomograms with the same kinds of particles in other places, taken under the same
conditions, as two tomograms of one data set are.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.pretraining.altered_families import ALTERED_FAMILIES
from copick_cryosam.pretraining.doubled_families import DOUBLED_FAMILIES
from copick_cryosam.pretraining.imaging import random_imaging
from copick_cryosam.pretraining.ranking_families import RANKING_FAMILIES
from copick_cryosam.pretraining.shapes import FAMILIES, Families, Shape, random_shape, read_shape
from copick_cryosam.pretraining.simulate import MARGIN, Scene, build, crop_truth, tomogram_of
from copick_cryosam.pretraining.wider_families import WIDER_FAMILIES

HELD_OUT_MAPS = ("4v94", "3cf3", "1qvr", "2uv8", "3h84")
"""Maps that no training sees: a chaperonin, p97, ClpB, fatty acid synthase and a small complex."""

HELD_OUT_FAMILIES = ("capped",)
"""Families of our own that no training sees."""

SAMPLE_SHAPE = (48, 128, 128)

LOOK_ALIKES = 0.6
"""Share of kinds after the first that are made to resemble the kind before: same family, about the same size."""

_PARTIAL = ".partial.npz"

LUMPS = (1.0, 2.6)
"""Gaussian widths, voxels, of the lumps that large random shapes consist of: 10 to 26 Å, whatever their size."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """Two tomograms of one data set, with their truth.

    Attributes
    ----------
    volumes : float32, shape (2, Z, Y, X), standardised, particles bright
    labels : uint16, as `volumes`; particle i of tomogram t has label i + 1
    clutter : bool, as `volumes`
    kinds, centres, radii : one array per tomogram, rows are particles
    """

    volumes: NDArray[np.float32]
    labels: NDArray[np.uint16]
    clutter: NDArray[np.bool_]
    kinds: tuple[NDArray[np.int64], ...]
    centres: tuple[NDArray[np.float64], ...]
    radii: tuple[NDArray[np.float64], ...]


def training_maps(folder: Path | None) -> list[Shape]:
    """The maps of a folder that are not held out; none where there is no folder."""
    if folder is None:
        return []
    return [read_shape(path) for path in sorted(folder.glob("*.mrc")) if path.stem not in HELD_OUT_MAPS]


FAMILIES_OF: dict[str, Families] = {
    "usual": {name: draw for name, draw in FAMILIES.items() if name not in HELD_OUT_FAMILIES},
    "wider": WIDER_FAMILIES,
    "altered": ALTERED_FAMILIES,
    "ranking": RANKING_FAMILIES,
    "doubled": {**RANKING_FAMILIES, **DOUBLED_FAMILIES},
}
"""Families that a pool may draw from. Nothing that EmbedNet is trained on may hold those of `ranking` or `doubled`."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What the samples of a pool are made of.

    Attributes
    ----------
    maps : densities, drawn four times of ten
    families : how each family of random shapes draws its domains
    radii : voxels, of random shapes, whose lumps are of `LUMPS` then; None: of `random_shape`
    shape_zyx : voxels of a tomogram
    counts : least and most particles of a kind that are tried to be placed in a tomogram, small numbers more often;
        None: as many of each as crowd it a quarter to wholly
    kinds : fewest and most in a sample
    """

    maps: Sequence[Shape] = ()
    families: Families = field(default_factory=lambda: FAMILIES_OF["usual"])
    radii: tuple[float, float] | None = None
    shape_zyx: tuple[int, int, int] = SAMPLE_SHAPE
    counts: tuple[int, int] | None = None
    kinds: tuple[int, int] = (3, 6)


def draw_shapes(rng: np.random.Generator, count: int, supply: Supply) -> list[Shape]:
    """Shapes for one sample, in half of the samples with look-alikes among them: barrels of one size, say.

    What parts a barrel from a rod is soon learnt; what parts two barrels has to be asked for.
    """
    names = sorted(supply.families)
    look_alikes = LOOK_ALIKES if rng.random() < 0.5 else 0.0
    shapes: list[Shape] = []
    lump = None if supply.radii is None else float(rng.uniform(*LUMPS))
    for k in range(count):
        radius: float | None
        if shapes and rng.random() < look_alikes:
            like = shapes[-1]
            family = like.family if like.family in names else str(rng.choice(names))
            radius = like.radius * float(rng.uniform(0.88, 1.12))
        elif supply.maps and rng.random() < 0.4:
            shapes.append(supply.maps[int(rng.integers(len(supply.maps)))])
            continue
        else:
            radius = None if supply.radii is None else float(np.exp(rng.uniform(*np.log(supply.radii))))
            family = str(rng.choice(names))
        name = f"shape-{k}"
        shapes.append(random_shape(rng, family=family, radius=radius, name=name, lump=lump, families=supply.families))
    return shapes


def draw_sample(rng: np.random.Generator, supply: Supply) -> Sample:
    """Simulate one sample: several kinds, clutter, one set of imaging conditions."""
    fewest, most = supply.kinds
    shapes = draw_shapes(rng, int(rng.integers(fewest, most + 1)), supply)
    imaging = random_imaging(rng)
    counts = _counts(rng, shapes, supply)
    volumes, labels, clutters = [], [], []
    truth: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
    for _ in range(2):
        scene = Scene(
            shape_zyx=supply.shape_zyx,
            counts=counts,
            membranes=int(rng.integers(0, 3)),
            filaments=int(rng.choice([0, 0, 1, 2])),
            beads=int(rng.choice([0, 0, 0, 1, 3])),
            gap=int(rng.integers(0, 3)),
        )
        specimen = build(scene, shapes, rng)
        volumes.append(tomogram_of(specimen, imaging, rng))
        inner, clutter, _ = crop_truth(specimen)
        labels.append(inner)
        clutters.append(clutter)
        truth.append((specimen.kinds, specimen.centres_zyx - np.array([0, 0, MARGIN]), specimen.radii))
    return Sample(
        volumes=np.stack(volumes),
        labels=np.stack(labels),
        clutter=np.stack(clutters),
        kinds=tuple(t[0] for t in truth),
        centres=tuple(t[1] for t in truth),
        radii=tuple(t[2] for t in truth),
    )


def _counts(rng: np.random.Generator, shapes: Sequence[Shape], supply: Supply) -> tuple[int, ...]:
    """Particles of each kind that are tried to be placed in a tomogram."""
    if supply.counts is not None:
        low, high = np.log(supply.counts)
        return tuple(round(float(count)) for count in np.exp(rng.uniform(low, high, size=len(shapes))))
    crowding = rng.uniform(0.25, 1.0)
    volume = float(np.prod(supply.shape_zyx)) / len(shapes)
    return tuple(max(3, min(24, round(crowding * 0.35 * volume / (4.2 * s.radius**3)))) for s in shapes)


def save_sample(sample: Sample, path: Path) -> None:
    """Write a sample whole or not at all."""
    arrays: dict[str, NDArray[np.generic]] = {
        "volumes": sample.volumes.astype(np.float16),
        "labels": sample.labels,
        "clutter": sample.clutter,
    }
    for t in range(2):
        arrays |= {f"kinds{t}": sample.kinds[t], f"centres{t}": sample.centres[t], f"radii{t}": sample.radii[t]}
    save_whole(arrays, path)


def save_whole(arrays: Mapping[str, NDArray[np.generic]], path: Path) -> None:
    """Write arrays to a file that `finished` tells of when all of it is there."""
    partial = path.with_name(path.name + _PARTIAL)
    np.savez(partial, allow_pickle=False, **arrays)
    os.replace(partial, path)


def finished(folder: Path, name: str) -> list[Path]:
    """Files `name`-*.npz that were written whole, in order."""
    return sorted(path for path in folder.glob(f"{name}-*.npz") if not path.name.endswith(_PARTIAL))


def load_sample(path: Path) -> Sample:
    """Read what `save_sample` wrote."""
    with np.load(path) as file:
        return Sample(
            volumes=file["volumes"].astype(np.float32),
            labels=file["labels"],
            clutter=file["clutter"],
            kinds=(file["kinds0"], file["kinds1"]),
            centres=(file["centres0"], file["centres1"]),
            radii=(file["radii0"], file["radii1"]),
        )


def sample_paths(folder: Path) -> list[Path]:
    """Samples that are there now, in order."""
    return finished(folder, "sample")


def main() -> None:
    """Fill a folder with samples; those that exist are kept, so that an interrupted run goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=SAMPLE_SHAPE, help="voxels, z y x")
    parser.add_argument("--radii", type=float, nargs=2, default=None, help="least and largest radius of shapes, voxels")
    parser.add_argument(
        "--counts", type=int, nargs=2, default=None, help="least and most particles of a kind (default: crowded)"
    )
    parser.add_argument("--kinds", type=int, nargs=2, default=Supply.kinds, help="fewest and most in a sample")
    parser.add_argument("--families", choices=FAMILIES_OF, default="usual", help="of random shapes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    supply = Supply(
        maps=training_maps(arguments.templates),
        families=FAMILIES_OF[arguments.families],
        radii=arguments.radii,
        shape_zyx=tuple(arguments.shape),
        counts=arguments.counts,
        kinds=tuple(arguments.kinds),
    )
    began = time.perf_counter()
    for index in range(arguments.start, arguments.start + arguments.count):
        path = arguments.folder / f"sample-{index:05d}.npz"
        if not path.exists():
            # a generator of its own for each sample: any one of them can be made again alone
            rng = np.random.default_rng([arguments.seed, index])
            save_sample(draw_sample(rng, supply), path)
            print(f"sample {index}  {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
