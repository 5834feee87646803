"""Which points are learned from: drawn ones, and pseudo-labels that lie on no other point."""

from __future__ import annotations

import numpy as np

from copick_cryosam.compute.sasi_points import RunPoints, recorded, select
from copick_cryosam.sasi.points import LabelledPoints, ParticleClass
from copick_cryosam.types import Grid, VoxelPoints

GRID = Grid((40, 50, 60), 10.0)
CLASSES = (ParticleClass(name="small", radius_vox=3.0), ParticleClass(name="large", radius_vox=8.0))


def labelled(zyx: list[list[float]], classes: list[int], weights: list[float], origin: str) -> LabelledPoints:
    return LabelledPoints(
        points=VoxelPoints(np.array(zyx, dtype=float)),
        classes=np.array(classes, dtype=np.int64),
        weights=np.array(weights, dtype=float),
        origins=(origin,) * len(zyx),
    )


def test_pseudo_labels_keep_off_points_and_each_other() -> None:
    human = labelled([[10, 10, 10], [30, 30, 30]], [1, 2], [1, 1], "by:hand/1")
    pseudo = labelled(
        [
            [10, 10, 12.5],  # on a point of its own class
            [30, 30, 37],  # within the radius of a larger one of another class
            [20, 20, 40],
            [20, 20, 44],  # worse than the next, whose radius reaches it
            [20, 20, 50],
            [10, 10, 14],
        ],
        [1, 1, 1, 1, 2, 1],
        [0.95, 0.99, 0.9, 0.91, 0.98, 0.93],
        "by:program/1",
    )
    (one,) = select({"A": RunPoints(grid=GRID, human=human, pseudo=pseudo)}, CLASSES, None, 0)
    assert one.labelled.points.zyx[2:].tolist() == [[20, 20, 40], [20, 20, 50], [10, 10, 14]]
    assert one.labelled.weights.tolist() == [1, 1, 0.9, 0.98, 0.93]
    told = recorded([one], CLASSES, {"A": GRID}, [(0, 1)])
    assert told[1] == {
        "object": "large",
        "run": "A",
        "picks": "by:hand/1",
        "position": [300.0, 300.0, 300.0],
        "weight": 1.0,
        "source": "human",
        "held_out": True,
    }
    assert told[4]["position"] == [140.0, 100.0, 100.0]
    assert told[4]["source"] == "pseudo"


def test_points_that_were_not_drawn_stand_in_no_pseudo_labels_way() -> None:
    zyx = [[10.0, 10, 10], [10, 10, 30], [10, 10, 50]]
    human = labelled([*zyx, [30, 40, 10]], [1, 1, 1, 2], [1] * 4, "by:hand/1")
    pseudo = labelled(zyx, [1] * 3, [0.9] * 3, "by:program/1")
    (one,) = select({"A": RunPoints(grid=GRID, human=human, pseudo=pseudo)}, CLASSES, 1, 5)
    small = one.labelled.classes == 1
    assert sorted(one.labelled.weights[small].tolist()) == [0.9, 0.9, 1.0]
    assert sorted(one.labelled.points.zyx[small].tolist()) == zyx


def test_none_at_all() -> None:
    nothing = labelled([], [], [], "")
    human = labelled([[10, 10, 10], [30, 30, 30]], [1, 2], [1, 1], "by:hand/1")
    gathered = {
        "A": RunPoints(grid=GRID, human=human, pseudo=nothing),
        "B": RunPoints(grid=GRID, human=nothing, pseudo=nothing),
    }
    assert [len(one.labelled) for one in select(gathered, CLASSES, None, 0)] == [2, 0]
