"""Measure settings of cross-plane self-prompting, or other weights of PromptNet, against the default.

    python -m copick_cryosam.pretraining.measure_segmenting --templates FOLDER \\
        [--variant area_jump=1.6,missed_planes=1] [--variant ...] [--weights promptnet.safetensors] [--fresh] \\
        [--repeats 3] [--snr 0.05 0.1] [--seed 1234]

Every true particle of simulated tomograms is prompted a quarter of its radius beside its centre, as a
proposal would. Its mask is compared with the true one. Kinds are of the families that training saw, or, with
`--fresh`, of those that no training draws. Every variant segments the same prompts: the table
shows the default's means and the paired differences to it with their standard errors, where one observation
is the mean over the particles of one kind in one tomogram (particles of one tomogram are no independent
observations).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from copick_cryosam.config import SegmenterSettings, override, preset
from copick_cryosam.contrast import standardise
from copick_cryosam.pretraining.fresh_families import fresh_shapes
from copick_cryosam.pretraining.shapes import Shape
from copick_cryosam.pretraining.simulate import Specimen, centres_inside, crop_truth
from copick_cryosam.pretraining.validate import Drawn, Layout, survey_on, tuning_shapes
from copick_cryosam.segmenters import PlaneSegmenter, load_segmenter
from copick_cryosam.segmenters.cross_plane import CrossPlaneMask, segment
from copick_cryosam.segmenters.promptnet import PromptNet, PromptNetSegmenter
from copick_cryosam.types import VoxelPoints
from copick_cryosam.weights import float_weights

LAYOUT = Layout(shape_zyx=(64, 160, 160), count=8, tomograms=1)
JITTER = 0.15
"""Standard deviation of a prompt from the true centre on each axis, in radii."""
VARIANTS = (
    "area_jump=1.6",
    "area_jump=1.3",
    "area_jump=1.6,area_rule=both",
    "drift=0.15",
    "drift=0.3",
    "score_drop=0.9",
    "score_drop=0.7",
    "missed_planes=1",
    "missed_planes=2",
    "missed_planes=1,area_jump=1.6,drift=0.3,score_drop=0.7",
)
COLUMNS = ("dice", "share over 0.7", "distance", "decodes")


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompts:
    """The particles of one kind in one tomogram.

    Attributes
    ----------
    volume : float32, shape (Z, Y, X), standardised, particles bright
    labels : uint16, as `volume`
    truth : int64, shape (N,), label of each particle
    centres : float64, shape (N, 3), voxels z, y, x
    points : where each particle is prompted
    radius : voxels
    """

    volume: NDArray[np.float32]
    labels: NDArray[np.uint16]
    truth: NDArray[np.int64]
    centres: NDArray[np.float64]
    points: VoxelPoints
    radius: float


def prompts_of(
    volume: NDArray[np.float32], specimen: Specimen, kind: int, shape: Shape, rng: np.random.Generator
) -> Prompts:
    """Every particle of a kind whose centre lies in the tomogram, prompted beside its centre."""
    labels, _, inside = crop_truth(specimen)
    centres = centres_inside(specimen, kind)
    points = centres + rng.normal(size=centres.shape) * JITTER * shape.radius
    return Prompts(
        volume=volume,
        labels=labels,
        truth=inside[specimen.kinds[inside] == kind] + 1,
        centres=centres,
        points=VoxelPoints(np.clip(points, 0, np.array(volume.shape) - 1)),
        radius=shape.radius,
    )


def scene(drawn: Drawn) -> list[Prompts]:
    """Prompts in a data set's only tomogram; kinds without a particle in it are left out."""
    ((raw, specimen),) = drawn.tomograms
    volume = standardise(raw)
    found = [prompts_of(volume, specimen, kind, shape, drawn.rng) for kind, shape in enumerate(drawn.shapes)]
    return [one for one in found if len(one.truth)]


def judge(prompts: Prompts, masks: Sequence[CrossPlaneMask]) -> NDArray[np.float64]:
    """Of each particle the Dice of its mask, whether that is over 0.7, the mask's centroid's distance from the
    true centre in voxels (an empty mask's centroid is its prompt) and the prompts decoded; shape (N, 4)."""
    rows = []
    for one, label, centre in zip(masks, prompts.truth, prompts.centres, strict=True):
        box = tuple(slice(o, o + n) for o, n in zip(one.origin_zyx, one.mask.shape, strict=True))
        hit = int(np.count_nonzero(prompts.labels[box][one.mask] == label))
        size = int(np.count_nonzero(one.mask))
        dice = 2 * hit / (size + int(np.count_nonzero(prompts.labels == label)))
        at = np.argwhere(one.mask).mean(axis=0) + one.origin_zyx if size else np.array(one.prompt_zyx)
        rows.append((dice, float(dice > 0.7), float(np.linalg.norm(at - centre)), float(one.decodes)))
    return np.array(rows)


def observe(prompts: Prompts, segmenter: PlaneSegmenter, settings: SegmenterSettings) -> NDArray[np.float64]:
    """Means of `judge` over the particles of a kind in a tomogram, shape (4,)."""
    masks = segment(torch.from_numpy(prompts.volume), prompts.points, prompts.radius, segmenter, settings)
    means: NDArray[np.float64] = judge(prompts, masks).mean(axis=0)
    return means


def segmenter_of(weights: Path, settings: SegmenterSettings) -> PlaneSegmenter:
    """PromptNet with weights as `export` writes them."""
    net = PromptNet()
    net.load_state_dict(float_weights(weights.read_bytes()))
    return PromptNetSegmenter(net, weights.stem, settings, torch.device("cpu"))


def parse(variant: str, base: SegmenterSettings) -> SegmenterSettings:
    """Settings from `name=value,name=value`, values as in YAML, over `base`."""
    values = {name: yaml.safe_load(value) for name, value in (part.split("=", 1) for part in variant.split(","))}
    whole = override(preset("embedded"), {"segmenter": base.model_dump() | values})
    return whole.segmenter


def table(default: NDArray[np.float64], variants: dict[str, NDArray[np.float64]]) -> str:
    """Markdown: the default's means, then each variant's paired differences ± standard error.

    Parameters
    ----------
    default : shape (M, 4), one row per kind and tomogram
    variants : the same of each variant
    """
    lines = ["| variant | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    lines.append("| default | " + " | ".join(f"{value:.3f}" for value in default.mean(axis=0)) + " |")
    for name, values in variants.items():
        change = values - default
        error = change.std(axis=0, ddof=1) / np.sqrt(len(change))
        cells = [f"{c:+.4f} ± {e:.4f}" for c, e in zip(change.mean(axis=0), error, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print one table for each signal-to-noise ratio and one over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--variant", action="append", help="name=value,... of the segmenter's settings; repeatable")
    parser.add_argument("--weights", action="append", type=Path, help="of PromptNet, in place of the package's")
    parser.add_argument("--fresh", action="store_true", help="kinds that no training draws")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--snr", type=float, nargs="+", default=(0.05, 0.1))
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = preset("embedded").segmenter
    segmenter = load_segmenter(base, torch.device("cpu"))
    others = [(str(path), segmenter_of(path, base)) for path in arguments.weights or ()]
    names = arguments.variant or (() if others else VARIANTS)
    changed = {name: parse(name, base) for name in names}
    variants = {name: (load_segmenter(one, torch.device("cpu")), one) for name, one in changed.items()}
    variants |= {name: (one, base) for name, one in others}
    rows: dict[float, list[list[NDArray[np.float64]]]] = {snr: [] for snr in arguments.snr}
    for drawn in survey_on(arguments, fresh_shapes if arguments.fresh else tuning_shapes, LAYOUT).draw():
        for prompts in scene(drawn):
            rows[drawn.snr].append([observe(prompts, *how) for how in ((segmenter, base), *variants.values())])
    everything = [row for found in rows.values() for row in found]
    for name, some in [*((f"SNR {snr}", found) for snr, found in rows.items()), ("all", everything)]:
        values = np.array(some)
        print(f"\n{name}, {len(values)} kinds and tomograms\n")
        print(table(values[:, 0], {variant: values[:, i + 1] for i, variant in enumerate(variants)}))


if __name__ == "__main__":
    main()
