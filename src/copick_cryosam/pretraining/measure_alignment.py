"""How far the second look's orientations are from the truth, and what its averages resolve.

    python -m copick_cryosam.pretraining.measure_alignment --templates FOLDER \\
        [--repeats 3] [--snr 0.05 0.1] [--tuning | --fresh] [--count 14] [--json FILE]

Data sets, kinds and the seed (one click in the first tomogram) are those of `validate.py`, and so is the pipeline.
Picks are matched one to one to the particles of the kind within a radius; the seed is left out. An orientation is
compared with all that look the same (`measure_orientations.self_symmetries`), a random one likewise: that is the
chance level. Coarse poses are those of the grid of rotations, fine ones those that the pipeline gives.

Averages take the best picks over all tomograms (`score_averages.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.assignment import assign, close_pairs
from copick_cryosam.errors import SeedError
from copick_cryosam.findings import Ranked, Tomogram
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.measure_orientations import (
    Rotations,
    errors_in_common_frame,
    orientation_errors,
    self_symmetries,
)
from copick_cryosam.pretraining.ranking import search
from copick_cryosam.pretraining.score_averages import AverageScore, Pick, density_in_pose, score_averages
from copick_cryosam.pretraining.shapes import Shape
from copick_cryosam.pretraining.simulate import MARGIN, Specimen, crop_truth
from copick_cryosam.pretraining.validate import Survey, embedded, options, save_rows, survey_of
from copick_cryosam.types import Pose, VoxelPoints, centroids

CLOSE = 20.0
"""Degrees under which an orientation counts as found."""
_BLUR = 0.1
"""Radii; halves a wave of 0.53 radii, the finest that the default `AlignmentSettings.limit` compares."""
_RANDOM = 1000


@dataclass(frozen=True, kw_only=True)
class KindAlignment:
    """One kind of particle in one simulated data set; one entry per true pick, degrees and voxels.

    Attributes
    ----------
    symmetries : rotations under which the density looks the same
    chance : median error of random orientations
    coarse, fine : errors of the orientations
    common : of the fine ones in the frame that they agree on (`errors_in_common_frame`)
    coarse_centre, fine_centre, mask_centre : distances of the pose's centre and the mask's centroid from the truth
    seed_offset : of the seed's mask from the seed; a pose's centre is that of the seed's mask, turned
    seconds : of a processor for refining, per pick
    """

    repeat: int
    snr: float
    kind: str
    radius: float
    symmetries: int
    chance: float
    coarse: list[float]
    fine: list[float]
    common: list[float]
    coarse_centre: list[float]
    fine_centre: list[float]
    mask_centre: list[float]
    seed_offset: float
    seconds: float
    averages: list[AverageScore]


class _Timed(CryoSAM):
    """The pipeline, which keeps its coarse poses and measures what making them finer costs."""

    ranked: Ranked
    seconds = 0.0
    refined = 0

    def rank(self, *arguments: object, **options: object) -> Ranked:
        self.ranked = super().rank(*arguments, **options)  # type: ignore[arg-type]
        return self.ranked

    def finer(self, ranked: Ranked, count: int, radius_vox: float) -> list[Pose]:
        began = time.process_time()
        poses = super().finer(ranked, count, radius_vox)
        self.seconds += time.process_time() - began
        self.refined += count
        return poses


def particles_inside(specimen: Specimen, kind: int) -> list[Pose]:
    """True poses of a kind in voxels of the tomogram."""
    _, _, inside = crop_truth(specimen)
    chosen = inside[specimen.kinds[inside] == kind]
    centres = specimen.centres_zyx[chosen] - np.array([0, 0, MARGIN])
    return [
        Pose(rotation=rotation, centre_zyx=(centre[0], centre[1], centre[2]))
        for rotation, centre in zip(specimen.rotations[chosen], centres, strict=True)
    ]


def chance_level(symmetries: Rotations) -> float:
    """Median error of random orientations, degrees."""
    anywhere = Rotation.random(_RANDOM, random_state=0).as_matrix()
    return float(np.median(orientation_errors(anywhere, np.broadcast_to(np.eye(3), anywhere.shape), symmetries)))


def match(points: NDArray[np.float64], truth: Sequence[Pose], radius: float) -> list[Pose | None]:
    """The particle that each point hits, one to one, within a radius."""
    centres = np.array([pose.centre_zyx for pose in truth], dtype=np.float64).reshape(-1, 3)
    rows, columns, distances = close_pairs(points, centres, radius)
    found: list[Pose | None] = [None] * len(points)
    for edge in assign(rows, columns, distances, len(points), len(centres)):
        found[rows[edge]] = truth[columns[edge]]
    return found


def measure_kind(
    model: _Timed,
    opened: Sequence[Tomogram],
    specimens: Sequence[Specimen],
    kind: int,
    shape: Shape,
    symmetries: Rotations,
    rng: np.random.Generator,
    *,
    repeat: int,
    snr: float,
) -> KindAlignment | None:
    """One seed in the first tomogram, all picks of all; None where the seed or a particle is missing."""
    truths = [particles_inside(specimen, kind) for specimen in specimens]
    size = np.array(opened[0].volume.shape)
    margin = np.array([0.5, 1, 1]) * shape.radius
    inner = [
        pose
        for pose in truths[0]
        if (np.array(pose.centre_zyx) > margin).all() and (pose.centre_zyx < size - margin).all()
    ]
    if len(truths[0]) < 3 or not inner:
        return None
    chosen = inner[rng.choice(len(inner))]
    # a click is never exact: about a quarter of the radius off
    click = np.array(chosen.centre_zyx) + rng.normal(size=3) * 0.15 * shape.radius
    try:
        seeded = model.seed(opened[0], VoxelPoints(np.clip(click, 0, size - 1)[None]), shape.radius)
    except SeedError:
        return None
    query = model.query([seeded])
    picks: list[Pick] = []
    model.seconds, model.refined = 0.0, 0
    # one at a time: the model keeps what it ranked last
    searched = search(model, opened, query, [seeded], shape.radius)
    for index, (result, truth) in enumerate(zip(searched, truths, strict=True)):
        found = result.instances
        points = [tuple(point) for point in model.ranked.proposals.points.zyx]
        places = dict(zip(points, model.ranked.poses, strict=False))
        hits = match(centroids(found).zyx, truth, shape.radius)
        for one, hit in zip(found, hits, strict=True):
            if one.pose is not None and hit is not chosen:
                picks.append(Pick(index, one, places[one.prompt_zyx], one.pose, hit))
    picks.sort(key=lambda pick: -pick.instance.score)
    true = [(pick, pick.true) for pick in picks if pick.true is not None]
    if not true:
        return None
    middle = np.array(seeded.instances[0].centroid_zyx)
    off = np.array(chosen.centre_zyx) - middle
    seed = Pose(rotation=chosen.rotation, centre_zyx=(off[0], off[1], off[2]))
    rotations = np.array([pose.rotation for _, pose in true])

    def errors(poses: Sequence[Pose]) -> list[float]:
        estimated = np.array([pose.rotation for pose in poses])
        return [float(v) for v in orientation_errors(estimated, rotations, symmetries, chosen.rotation.T)]

    def distances(centres: Sequence[tuple[float, float, float]]) -> list[float]:
        return [float(np.linalg.norm(np.subtract(c, t.centre_zyx))) for c, (_, t) in zip(centres, true, strict=True)]

    edge = int(np.ceil(4 * shape.radius)) | 1
    return KindAlignment(
        repeat=repeat,
        snr=snr,
        kind=shape.name,
        radius=shape.radius,
        symmetries=len(symmetries),
        chance=chance_level(symmetries),
        coarse=errors([pick.coarse for pick, _ in true]),
        fine=errors([pick.fine for pick, _ in true]),
        common=errors_in_common_frame(
            np.array([pick.fine.rotation for pick, _ in true]), rotations, symmetries
        ).tolist(),
        coarse_centre=distances([pick.coarse.centre_zyx for pick, _ in true]),
        fine_centre=distances([pick.fine.centre_zyx for pick, _ in true]),
        mask_centre=distances([pick.instance.centroid_zyx for pick, _ in true]),
        seed_offset=float(np.linalg.norm(off)),
        seconds=model.seconds / model.refined,
        averages=score_averages(
            [one.volume for one in opened],
            [one.wedge for one in opened],
            picks,
            density_in_pose(shape.density, seed, edge),
            seed,
            shape.radius,
        ),
    )


def measure(model: _Timed, survey: Survey) -> list[KindAlignment]:
    """Every kind of every data set."""
    rows = []
    for drawn in survey.draw():
        opened = drawn.opened(model)
        for kind, shape in enumerate(drawn.shapes):
            same = self_symmetries(ndimage.gaussian_filter(shape.density, _BLUR * shape.radius))
            row = measure_kind(
                model,
                opened,
                drawn.specimens,
                kind,
                shape,
                same,
                drawn.rng,
                repeat=drawn.repeat,
                snr=drawn.snr,
            )
            if row is not None:
                rows.append(row)
                print(_row(row.kind, [row]), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[KindAlignment]) -> str:
    """Markdown: orientations by kind, then all; then averages of all kinds by number of picks."""
    if not rows:
        return "No kind had enough particles."
    names = ["all", *dict.fromkeys(row.kind for row in rows)]
    lines = [
        "| kind | picks | same | chance | coarse: median, 90 %, < 20° | fine: median, 90 %, < 20° "
        "| fine, common frame | centre coarse, fine, mask (radii) | CPU ms per pick |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, [row for row in rows if name in ("all", row.kind)]) for name in names]
    lines += [
        "",
        "| poses | picks | averages | of the kind | FSC 0.143 (Å) | FSC 0.5 (Å) | true FSC 0.5 (Å) | correlation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    made = [one for row in rows for one in row.averages]
    for poses in ("coarse", "fine", "true"):
        for least in sorted({_octave(one.count) for one in made}):
            some = [one for one in made if one.poses == poses and _octave(one.count) == least]
            if some:
                columns = ("resolution_0143", "resolution_05", "against_truth", "correlation")
                cells = [np.median([getattr(one, column) for one in some]) for column in columns]
                share = sum(one.true for one in some) / sum(one.count for one in some)
                lines.append(
                    f"| {poses} | {least} to {2 * least - 1} | {len(some)} | {share:.0%} | "
                    + " | ".join(f"{cell:.0f}" for cell in cells[:3])
                    + f" | {cells[3]:.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the tables."""
    arguments = options(__doc__, seed=1234, threads=1).parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(_Timed.from_settings(embedded(arguments.precision)), survey_of(arguments))
    save_rows(rows, arguments.json)
    print(table(rows))


def _octave(count: int) -> int:
    return 1 << (count.bit_length() - 1)


def _row(name: str, rows: Sequence[KindAlignment]) -> str:
    def gathered(column: str, *, in_radii: bool = False) -> NDArray[np.float64]:
        return np.concatenate([np.array(getattr(row, column)) / (row.radius if in_radii else 1) for row in rows])

    def spread(column: str) -> str:
        values = gathered(column)
        values = values[~np.isnan(values)]
        if not len(values):
            return "–"
        return f"{np.median(values):.0f}, {np.percentile(values, 90):.0f}, {np.mean(values < CLOSE):.0%}"

    centres = [gathered(column, in_radii=True) for column in ("coarse_centre", "fine_centre", "mask_centre")]
    same = sorted({row.symmetries for row in rows})
    chance = np.mean([row.chance for row in rows])
    return (
        f"| {name} | {len(gathered('fine'))} | {same[0]}{f' to {same[-1]}' if len(same) > 1 else ''} | {chance:.0f} "
        f"| {spread('coarse')} | {spread('fine')} | {spread('common')} "
        f"| {', '.join(f'{np.median(c):.2f}' for c in centres)} "
        f"| {1000 * np.mean([row.seconds for row in rows]):.0f} |"
    )


if __name__ == "__main__":
    main()
