"""Cross-plane self-prompting, with scripted segmenters for the rules and the weight-free one for the whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.errors import DeviceError, InputError
from copick_cryosam.segmenters import Decoded, load_segmenter
from copick_cryosam.segmenters import walking as module
from copick_cryosam.segmenters.cross_plane import CrossPlaneMask, half_window, segment
from copick_cryosam.segmenters.fusing import AxisStack, combine
from copick_cryosam.types import VoxelPoints

FAKE = SegmenterSettings(name="fake")


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Oracle:
    """Answers with what a label volume per axis says; `presence` and `scores` by (axis, plane) script the heads.

    Its `prompt` is the mask's plane index, so that a test can see which plane prompted which.
    """

    truth: tuple[np.ndarray, np.ndarray, np.ndarray]
    presence: dict[tuple[int, int], float] = field(default_factory=dict)
    iou: float = 0.8
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    name: str = "oracle"
    signature: str = "oracle"
    calls: list[tuple[int, list[int], list[tuple[float, float]], list[int] | None]] = field(default_factory=list)

    def embed(self, volume, axis, radius_vox):
        assert self.truth[axis].shape == tuple(volume.shape)
        return axis, torch.as_tensor(np.moveaxis(self.truth[axis], axis, 0).copy())

    def decode(self, embeddings, planes, points, windows, window, mask_prompts):
        axis, truth = embeddings
        prompted = None if mask_prompts is None else mask_prompts[:, 0].int().tolist()
        self.calls.append((axis, planes.tolist(), [tuple(p) for p in points.tolist()], prompted))
        logits = torch.full((len(planes), window, window), -4.0)
        for n, (plane, (top, left)) in enumerate(zip(planes.tolist(), windows.tolist(), strict=True)):
            height, width = truth.shape[1:]
            rows = slice(max(top, 0), min(top + window, height))
            columns = slice(max(left, 0), min(left + window, width))
            patch = truth[plane, rows, columns].float() * 8 - 4
            logits[n, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = patch
        presence = torch.tensor([self.presence.get((axis, plane), 1.0) for plane in planes.tolist()])
        return Decoded(
            logits=logits,
            iou=torch.tensor([self.scores.get((axis, plane), self.iou) for plane in planes.tolist()]),
            presence=presence,
            prompt=planes[:, None].float(),
        )


def oracle(*truth: np.ndarray, **scripted) -> Oracle:
    return Oracle(truth if len(truth) == 3 else (truth[0],) * 3, **scripted)


def ellipsoid(shape, centre, radii) -> np.ndarray:
    grid = np.indices(shape) - np.array(centre, dtype=float)[:, None, None, None]
    return ((grid / np.array(radii, dtype=float)[:, None, None, None]) ** 2).sum(axis=0) <= 1


def empty(shape) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def noisy(truth: np.ndarray, noise: float = 0.3) -> torch.Tensor:
    values = truth + noise * np.random.default_rng(3).standard_normal(truth.shape)
    return torch.as_tensor((values - values.mean()) / values.std(), dtype=torch.float32)


def place(one: CrossPlaneMask, shape) -> np.ndarray:
    full = np.zeros(shape, dtype=bool)
    full[tuple(slice(o, o + n) for o, n in zip(one.origin_zyx, one.mask.shape, strict=True))] = one.mask
    assert full.sum() == one.mask.sum()
    return full


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def points(*zyx) -> VoxelPoints:
    return VoxelPoints(np.array(zyx, dtype=float).reshape(-1, 3))


def settings(**changes) -> SegmenterSettings:
    return SegmenterSettings(name="fake", **{"iou_stop": 0.0, "presence_stop": 0.0, **changes})


def fake(volume, prompts, radius, options=FAKE, **more):
    return segment(volume, prompts, radius, load_segmenter(options, torch.device("cpu")), options, **more)


# --- input ------------------------------------------------------------------------------------


def test_no_points_no_work():
    segmenter = oracle(np.zeros((5, 6, 7), dtype=bool))
    assert segment(empty((5, 6, 7)), points(), 2.0, segmenter, FAKE) == []
    assert segmenter.calls == []


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_radius_is_refused(radius):
    with pytest.raises(InputError, match="radius: expected a positive number of voxels"):
        segment(empty((5, 6, 7)), points((1, 1, 1)), radius, oracle(np.zeros((5, 6, 7), dtype=bool)), FAKE)


@pytest.mark.parametrize("bad", [(5, 1, 1), (1, -0.6, 1), (1, 1, 6.5), (1, float("nan"), 1)])
def test_a_point_outside_is_named(bad):
    with pytest.raises(InputError, match=r"point 1: expected inside the volume of \(5, 6, 7\)"):
        segment(empty((5, 6, 7)), points((1, 1, 1), bad), 2.0, oracle(np.zeros((5, 6, 7), dtype=bool)), FAKE)


# --- the walk ---------------------------------------------------------------------------------


def test_the_mask_is_the_object_with_its_tight_box():
    shape = (21, 23, 25)
    truth = ellipsoid(shape, (10, 11, 12), (4, 4, 4))
    (one,) = segment(empty(shape), points((10, 11, 12)), 4.0, oracle(truth), settings())
    assert np.array_equal(place(one, shape), truth)
    assert one.origin_zyx == (6, 7, 8)
    assert one.mask.shape == (9, 9, 9)
    assert one.prompt_zyx == (10.0, 11.0, 12.0)
    # Nine planes on each axis; each of six walks decodes one plane more, in which nothing is left.
    assert (one.planes, one.decodes) == (27, 27 + 6)
    assert one.agreement == pytest.approx(1.0)
    assert one.predicted_iou == pytest.approx(0.8)
    assert one.confidence == pytest.approx(0.8)


def test_the_start_plane_is_decoded_once_with_the_click_and_the_next_with_mask_and_peak():
    shape = (21, 21, 21)
    truth = np.zeros(shape, dtype=bool)
    truth[8:13, 9:12, 11:14] = True
    segmenter = oracle(truth)
    segment(empty(shape), points((10.2, 10.4, 11.6)), 3.0, segmenter, settings())
    along_z = [call for call in segmenter.calls if call[0] == 0]
    axis, planes, clicks, prompts = along_z[0]
    assert (axis, planes, prompts) == (0, [10], None)
    assert clicks == [pytest.approx((10.4, 11.6))]
    _, planes, clicks, prompts = along_z[1]
    assert sorted(planes) == [9, 11]
    # All logits of the mask are equal: the peak is the one at its centroid, in voxels of the plane.
    assert clicks == [(10.0, 12.0)] * 2
    assert prompts == [10, 10]
    _, planes, _, prompts = along_z[2]
    assert sorted(zip(planes, prompts, strict=True)) == [(8, 9), (12, 11)]


def test_a_walk_stops_where_adjacent_masks_disagree_and_leaves_that_plane_out():
    shape = (31, 31, 31)
    truth = np.zeros(shape, dtype=bool)
    truth[12:19, 12:19, 12:19] = True
    truth[17:19, 12:19, 12:14] = False
    truth[17:19, 12:19, 15:19] = False  # above plane 16 the mask is a seventh of what it was
    nothing = np.zeros(shape, dtype=bool)
    # The z axis alone has masks: the union is its stack.
    strict = segment(
        empty(shape),
        points((15, 15, 14)),
        5.0,
        oracle(truth, nothing, nothing),
        settings(iou_stop=0.5, fuse="union"),
    )
    lax = segment(empty(shape), points((15, 15, 14)), 5.0, oracle(truth, nothing, nothing), settings(fuse="union"))
    assert np.array_equal(np.flatnonzero(place(strict[0], shape).any(axis=(1, 2))), np.arange(12, 17))
    assert np.array_equal(np.flatnonzero(place(lax[0], shape).any(axis=(1, 2))), np.arange(12, 19))
    assert strict[0].planes == 5


def test_a_walk_stops_where_the_object_is_said_to_be_absent():
    shape = (31, 31, 31)
    truth = ellipsoid(shape, (15, 15, 15), (8, 8, 8))
    script = {(0, 17): 0.49, (0, 12): 0.5}
    (one,) = segment(
        empty(shape),
        points((15, 15, 15)),
        8.0,
        oracle(truth, np.zeros_like(truth), np.zeros_like(truth), presence=script),
        settings(presence_stop=0.5, fuse="union"),
    )
    assert np.array_equal(np.flatnonzero(place(one, shape).any(axis=(1, 2))), np.arange(7, 17))


def test_a_click_on_nothing_gives_an_empty_mask():
    shape = (15, 15, 15)
    (one,) = segment(empty(shape), points((7, 3, 11)), 3.0, oracle(np.zeros(shape, dtype=bool)), settings())
    assert one.mask.shape == (0, 0, 0)
    assert one.origin_zyx == (7, 3, 11)
    assert (one.confidence, one.planes, one.decodes) == (0.0, 0, 3)


def test_an_absent_object_on_the_prompted_plane_gives_an_empty_mask():
    shape = (15, 15, 15)
    truth = ellipsoid(shape, (7, 7, 7), (3, 3, 3))
    script = dict.fromkeys([(0, 7), (1, 7), (2, 7)], 0.1)
    (one,) = segment(empty(shape), points((7, 7, 7)), 3.0, oracle(truth, presence=script), settings(presence_stop=0.5))
    assert one.mask.size == 0
    assert one.decodes == 3
    # a seed is on the object: whatever the segmenter thinks of the prompted planes, they are used
    (trusted,) = segment(
        empty(shape),
        points((7, 7, 7)),
        3.0,
        oracle(truth, presence=script),
        settings(presence_stop=0.5),
        sure=True,
    )
    assert trusted.mask.sum() == truth.sum()


@pytest.mark.parametrize(("extent", "expected"), [(0.5, 5), (1.5, 13), (2.0, 17), (0.01, 3)])
def test_the_extent_caps_the_length_along_the_axis(extent, expected):
    """radius 4: extent x diameter, plus the prompted plane; at least one plane each way, at most the cube."""
    shape = (41, 41, 41)
    pillar = np.zeros(shape, dtype=bool)
    pillar[:, 18:23, 18:23] = True
    nothing = np.zeros_like(pillar)
    (one,) = segment(
        empty(shape),
        points((20, 20, 20)),
        4.0,
        oracle(pillar, nothing, nothing),
        settings(extent=extent, fuse="union"),
    )
    assert one.mask.shape == (expected, 5, 5)
    assert one.origin_zyx == (20 - expected // 2, 18, 18)


def test_the_cube_is_two_radii_each_way():
    assert [half_window(r) for r in (0.4, 4.0, 5.5)] == [1, 8, 11]


@pytest.mark.parametrize("corner", [(0, 0, 0), (10, 0, 24), (0, 17, 24), (10, 17, 0), (5, 0, 12), (-0.4, 17.4, 24.2)])
def test_prompts_on_corners_edges_and_faces(corner):
    shape = (11, 18, 25)
    truth = ellipsoid(shape, corner, (4, 4, 4))
    (one,) = segment(empty(shape), points(corner), 4.0, oracle(truth), settings())
    assert np.array_equal(place(one, shape), truth)


def test_a_volume_thinner_than_the_cube():
    shape = (3, 30, 5)
    truth = ellipsoid(shape, (1, 15, 2), (6, 6, 6))
    (one,) = segment(empty(shape), points((1, 15, 2)), 6.0, oracle(truth), settings())
    assert np.array_equal(place(one, shape), truth)


def test_what_a_segmenter_says_beyond_the_plane_is_ignored():
    @dataclass
    class Everywhere(Oracle):
        def decode(self, *arguments):
            decoded = super().decode(*arguments)
            return Decoded(
                logits=torch.ones_like(decoded.logits),
                iou=decoded.iou,
                presence=decoded.presence,
                prompt=decoded.prompt,
            )

    shape = (9, 10, 11)
    segmenter = Everywhere((np.ones(shape, dtype=bool),) * 3)
    (one,) = segment(empty(shape), points((0, 9, 5)), 3.0, segmenter, settings(extent=2.0))
    # Cubes of half edge 6 and walks of 6 planes, cut at the volume's edges.
    whole = np.zeros(shape, dtype=bool)
    whole[0:7, 3:10, 0:11] = True
    assert np.array_equal(place(one, shape), whole)


# --- further rules of stopping ----------------------------------------------------------------

TALL = (31, 31, 31)


def planes_kept(side: np.ndarray, options: SegmenterSettings, **scripted) -> list[int]:
    """z planes that the walk along z used, from the middle plane 15.

    The other axes see a thin rod through all planes: it holds the union together where planes are missed.
    """
    rod = np.zeros_like(side)
    rod[:, 15, 15] = True
    options = options.model_copy(update={"fuse": "union"})
    (one,) = segment(empty(TALL), points((15, 15, 15)), 5.0, oracle(side, rod, rod, **scripted), options)
    return np.flatnonzero((place(one, TALL) & ~rod).any(axis=(1, 2))).tolist()


def tower(*floors: tuple[range, slice, slice]) -> np.ndarray:
    """A stack of boxes: for each range of z planes its rows and columns."""
    truth = np.zeros(TALL, dtype=bool)
    for planes, rows, columns in floors:
        truth[planes.start : planes.stop, rows, columns] = True
    return truth


def test_a_walk_stops_where_the_area_jumps():
    # 36 voxels in the middle, 60 (1.67 times) above, 21 (1 / 1.71) below
    truth = tower(
        (range(13, 18), slice(12, 18), slice(12, 18)),
        (range(18, 21), slice(12, 18), slice(11, 21)),
        (range(10, 13), slice(12, 15), slice(12, 19)),
    )
    whole = list(range(10, 21))
    assert planes_kept(truth, settings()) == whole
    assert planes_kept(truth, settings(area_jump=1.75, area_rule="both")) == whole
    assert planes_kept(truth, settings(area_jump=1.69, area_rule="growth")) == whole
    assert planes_kept(truth, settings(area_jump=1.6, area_rule="growth")) == list(range(10, 18))
    assert planes_kept(truth, settings(area_jump=1.69, area_rule="both")) == list(range(13, 21))
    assert planes_kept(truth, settings(area_jump=1.6, area_rule="both")) == list(range(13, 18))


def test_a_walk_stops_where_the_centroid_drifts():
    # a step by (1, 2) voxels, √5: 0.447 radii of 5
    truth = tower((range(11, 18), slice(12, 18), slice(12, 18)), (range(18, 22), slice(13, 19), slice(14, 20)))
    assert planes_kept(truth, settings(drift=0.46)) == list(range(11, 22))
    assert planes_kept(truth, settings(drift=0.43)) == list(range(11, 18))


def test_a_walk_stops_where_the_score_falls_below_a_part_of_the_prompted_planes():
    truth = tower((range(10, 21), slice(12, 18), slice(12, 18)))
    scores = {(0, 15): 0.9, (0, 17): 0.73, (0, 18): 0.71, (0, 12): 0.5}
    assert planes_kept(truth, settings(), scores=scores) == list(range(10, 21))
    # 0.8 x 0.9 = 0.72; the other planes have 0.8
    assert planes_kept(truth, settings(score_drop=0.8), scores=scores) == list(range(13, 18))


@pytest.mark.parametrize(
    ("absent", "missed", "kept"),
    [
        ([17], 0, range(8, 17)),
        ([17], 1, [*range(8, 17), *range(18, 23)]),
        ([17, 18], 1, range(8, 17)),
        ([17, 18], 2, [*range(8, 17), *range(19, 23)]),
        # a good plane in between starts the count again
        ([17, 19], 1, [*range(8, 17), 18, *range(20, 23)]),
    ],
)
def test_missed_planes_stay_empty_and_the_walk_goes_on(absent, missed, kept):
    truth = tower((range(8, 23), slice(12, 18), slice(12, 18)))
    script = {(0, plane): 0.0 for plane in absent}
    assert planes_kept(truth, settings(presence_stop=0.5, missed_planes=missed), presence=script) == list(kept)


def test_after_a_missed_plane_the_last_good_one_prompts_and_is_compared_with():
    # above the missed plane 17 the object is where it was, there it is elsewhere
    truth = tower((range(12, 20), slice(12, 18), slice(12, 18)))
    truth[17] = False
    truth[17, 20:26, 20:26] = True
    nothing = np.zeros_like(truth)
    segmenter = oracle(truth, nothing, nothing)
    options = settings(iou_stop=0.5, missed_planes=1, fuse="union")
    (one,) = segment(empty(TALL), points((15, 15, 15)), 5.0, segmenter, options)
    assert np.flatnonzero(place(one, TALL).any(axis=(1, 2))).tolist() == [12, 13, 14, 15, 16]  # the prompted component
    assert one.planes == 7
    prompted = {}
    for axis, planes, clicks, prompts in segmenter.calls:
        if axis == 0 and prompts is not None:
            prompted |= dict(zip(planes, zip(prompts, clicks, strict=True), strict=True))
    middle = prompted[16][1]
    assert [prompted[plane] for plane in (17, 18, 19)] == [(16, middle), (16, middle), (18, middle)]
    # beyond the object the same holds: planes 20 and 21 fail after 19
    assert [prompted[plane][0] for plane in (20, 21)] == [19, 19]
    assert 22 not in prompted


def alone(volume, point, radius, segmenter, options) -> CrossPlaneMask:
    """Eqs. 1 and 2 and all rules, spelt out for one point: one prompt at a time, no batches."""
    half = half_window(radius)
    edge = 2 * half + 1
    reach = min(half, max(1, int(options.extent * radius + 0.5)))
    anchor = np.floor(point + 0.5).astype(int)
    stacks = []
    for axis in range(3):
        embeddings = segmenter.embed(volume, axis, radius)
        others = [other for other in range(3) if other != axis]
        window = torch.tensor((anchor[others] - half)[None])
        bounds = [(max(half - anchor[a], 0), min(volume.shape[a] - anchor[a] + half, edge)) for a in others]
        within = np.zeros((edge, edge), dtype=bool)
        within[bounds[0][0] : bounds[0][1], bounds[1][0] : bounds[1][1]] = True
        cube = np.zeros((edge,) * 3, dtype=bool)
        used: list[tuple[int, float]] = []
        decodes = 0

        def decode(plane, click, prompt, axis=axis, embeddings=embeddings, window=window, within=within):
            click = torch.tensor(np.array([click]), dtype=torch.float32)
            found = segmenter.decode(embeddings, torch.tensor([plane]), click, window, edge, prompt)
            mask = (found.logits[0].numpy() > 0) & within
            return mask, found

        def peak(mask, found, window=window):
            logits = np.where(mask, found.logits[0].numpy(), -np.inf)
            squared = ((np.argwhere(mask) - np.argwhere(mask).mean(axis=0)) ** 2).sum(axis=1)
            best = np.argwhere(mask)[np.where(logits[mask] == logits.max(), squared, np.inf).argmin()]
            return best + window[0].numpy()

        def compared(one, other, score, first):
            ious = (one & other).sum() / (one | other).sum()
            moved = np.linalg.norm(np.argwhere(one).mean(axis=0) - np.argwhere(other).mean(axis=0))
            growth = other.sum() / one.sum()
            return (
                ious >= options.iou_stop
                and (options.area_jump is None or growth <= options.area_jump)
                and (options.area_jump is None or options.area_rule == "growth" or 1 / growth <= options.area_jump)
                and (options.drift is None or moved <= options.drift * radius)
                and (options.score_drop is None or score >= options.score_drop * first)
            )

        start, begun = decode(anchor[axis], point[others], None)
        decodes += 1
        if start.any() and begun.presence[0] >= options.presence_stop:
            cube[half] = start
            used.append((int(start.sum()), float(begun.iou[0])))
            for sign in (1, -1):
                last, found, missed = start, begun, 0
                for step in range(1, reach + 1):
                    plane = anchor[axis] + sign * step
                    if not 0 <= plane < volume.shape[axis]:
                        break
                    mask, now = decode(plane, peak(last, found), found.prompt)
                    decodes += 1
                    good = mask.any() and now.presence[0] >= options.presence_stop
                    if good and compared(last, mask, now.iou[0], begun.iou[0]):
                        cube[half + sign * step] = mask
                        used.append((int(mask.sum()), float(now.iou[0])))
                        last, found, missed = mask, now, 0
                    else:
                        missed += 1
                        if missed > options.missed_planes:
                            break
        bits = np.packbits(np.moveaxis(cube, 0, axis).reshape(1, -1), axis=1)
        sums = (sum(n for n, _ in used), sum(n * iou for n, iou in used), len(used), decodes)
        stacks.append(AxisStack(bits, *(np.array([value]) for value in sums)))
    return combine(stacks, 0, point, anchor, half, options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"area_jump": 1.15},
        {"area_jump": 1.3, "area_rule": "both"},
        {"drift": 0.08},
        {"score_drop": 0.97},
        {"missed_planes": 2},
        {"area_jump": 1.2, "area_rule": "both", "drift": 0.1, "score_drop": 0.97, "missed_planes": 1},
    ],
    ids=str,
)
def test_lockstep_follows_the_rules_as_spelt_out_for_one_point(changes):
    _, truth, prompts = crowded()
    volume = noisy(truth, 0.8)
    options = SegmenterSettings(name="fake", batch=4, **changes)
    together = fake(volume, prompts, 5.0, options)
    for one, point in zip(together, prompts.zyx, strict=True):
        assert_same(one, alone(volume, point, 5.0, load_segmenter(options, torch.device("cpu")), options))
    if changes:
        # or the case would say nothing of its rules
        assert any(a.planes != b.planes for a, b in zip(together, fake(volume, prompts, 5.0), strict=True))


# --- fusing -----------------------------------------------------------------------------------


def test_vote_needs_two_axes_and_union_one():
    shape = (25, 25, 25)
    core = ellipsoid(shape, (12, 12, 12), (3, 3, 3))
    leak = core.copy()
    leak[12, 12, 12:19] = True
    prompt = points((12, 12, 12))
    (vote,) = segment(empty(shape), prompt, 4.0, oracle(leak, core, core), settings(fuse="vote"))
    (union,) = segment(empty(shape), prompt, 4.0, oracle(leak, core, core), settings(fuse="union"))
    (two,) = segment(empty(shape), prompt, 4.0, oracle(leak, leak, core), settings(fuse="vote"))
    assert np.array_equal(place(vote, shape), core)
    assert np.array_equal(place(union, shape), leak)
    assert np.array_equal(place(two, shape), leak)
    assert vote.agreement == union.agreement
    small, large = core.sum(), leak.sum()
    assert vote.agreement == pytest.approx((1 + 2 * (2 * small / (small + large))) / 3)
    assert vote.confidence == pytest.approx(0.8 * vote.agreement)


def test_the_predicted_iou_is_weighted_by_area():
    @dataclass
    class Surer(Oracle):
        def decode(self, embeddings, *arguments):
            decoded = super().decode(embeddings, *arguments)
            iou = torch.full_like(decoded.iou, 0.9 if embeddings[0] == 0 else 0.3)
            return Decoded(logits=decoded.logits, iou=iou, presence=decoded.presence, prompt=decoded.prompt)

    shape = (21, 21, 21)
    large, small = ellipsoid(shape, (10, 10, 10), (5, 5, 5)), ellipsoid(shape, (10, 10, 10), (2, 2, 2))
    (one,) = segment(empty(shape), points((10, 10, 10)), 4.0, Surer((large, small, small)), settings())
    areas = np.array([large.sum(), small.sum(), small.sum()])
    assert one.predicted_iou == pytest.approx((areas * (0.9, 0.3, 0.3)).sum() / areas.sum())


def test_only_the_prompted_component_is_kept_and_diagonals_do_not_connect():
    shape = (25, 25, 25)
    truth = np.zeros(shape, dtype=bool)
    truth[10:14, 10:14, 10:14] = True
    truth[14:17, 14:17, 14:17] = True  # touches the first at a corner
    (one,) = segment(empty(shape), points((11, 11, 11)), 5.0, oracle(truth), settings())
    assert one.origin_zyx == (10, 10, 10)
    assert one.mask.shape == (4, 4, 4)


def test_a_hollow_object_prompted_in_its_cavity_is_its_shell():
    shape = (31, 31, 31)
    shell = ellipsoid(shape, (15, 15, 15), (6, 6, 6)) & ~ellipsoid(shape, (15, 15, 15), (3, 3, 3))
    (one,) = segment(empty(shape), points((15, 15, 15)), 6.0, oracle(shell), settings())
    assert np.array_equal(place(one, shape), shell)


@pytest.mark.parametrize(("x", "first"), [(19.6, 16), (20.4, 22)])
def test_between_two_components_the_nearer_one_is_kept(x, first):
    shape = (31, 33, 41)
    truth = np.zeros(shape, dtype=bool)
    truth[14:17, 15:18, 16:19] = truth[14:17, 15:18, 22:25] = True
    (one,) = segment(empty(shape), points((15, 16, x)), 6.0, oracle(truth), settings(fuse="union"))
    assert one.origin_zyx == (14, 15, first)
    assert one.mask.shape == (3, 3, 3)


# --- batches ----------------------------------------------------------------------------------


def crowded() -> tuple[tuple[int, int, int], np.ndarray, VoxelPoints]:
    shape = (28, 44, 52)
    centres = [(14, 12, 12), (8, 30, 14), (20, 14, 38), (3, 34, 40), (16, 28, 28), (1, 1, 50)]
    truth = np.zeros(shape, dtype=bool)
    for centre in centres:
        truth |= ellipsoid(shape, centre, (5, 5, 5))
    jitter = np.random.default_rng(1).uniform(-1, 1, (len(centres), 3))
    zyx = np.clip(np.array(centres) + jitter, 0, np.array(shape) - 1)
    return shape, truth, VoxelPoints(np.vstack([zyx, [[25, 41, 2]]]))


def assert_same(one: CrossPlaneMask, other: CrossPlaneMask) -> None:
    assert one.origin_zyx == other.origin_zyx
    assert np.array_equal(one.mask, other.mask)
    assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    assert (one.planes, one.decodes) == (other.planes, other.decodes)


@pytest.mark.parametrize("batch", [1, 3, 128])
def test_lockstep_equals_one_by_one(batch):
    _, truth, prompts = crowded()
    volume = noisy(truth)
    together = fake(volume, prompts, 5.0, SegmenterSettings(name="fake", batch=batch))
    assert any(one.mask.size for one in together)
    for n, one in enumerate(together):
        (alone,) = fake(volume, points(prompts.zyx[n]), 5.0)
        assert_same(one, alone)


def test_groups_do_not_change_the_result(monkeypatch):
    _, truth, prompts = crowded()
    volume = noisy(truth)
    whole = fake(volume, prompts, 5.0)
    monkeypatch.setattr(module, "_GROUP_BYTES", 2 * 21**3)
    for one, other in zip(whole, fake(volume, prompts, 5.0), strict=True):
        assert_same(one, other)


def test_no_decode_exceeds_the_batch_and_ended_walks_are_dropped():
    shape = (41, 41, 41)
    long, short = ellipsoid(shape, (20, 10, 10), (9, 3, 3)), ellipsoid(shape, (20, 30, 30), (3, 3, 3))
    segmenter = oracle(long | short)
    masks = segment(empty(shape), points((20, 10, 10), (20, 30, 30)), 6.0, segmenter, settings(batch=3))
    sizes = [len(planes) for _, planes, _, _ in segmenter.calls]
    assert max(sizes) == 3
    assert sum(sizes) == sum(one.decodes for one in masks)
    assert masks[1].decodes < masks[0].decodes
    along_z = [planes for axis, planes, _, _ in segmenter.calls if axis == 0]
    assert along_z[-1] in ([29, 11], [11, 29])


@dataclass
class Crowded(Oracle):
    """An oracle whose memory ends at some number of prompts, and of which axis."""

    room: int = 2
    axis: int | None = None

    def decode(self, embeddings, planes, *more):
        if len(planes) > self.room and self.axis in (None, embeddings[0]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(embeddings, planes, *more)


def test_out_of_memory_halves_the_batch_once_for_all_axes(caplog):
    shape, truth, prompts = crowded()
    (plain, short) = oracle(truth), Crowded((truth,) * 3, room=2)
    expected = segment(empty(shape), prompts, 5.0, plain, settings(batch=4))
    with caplog.at_level("WARNING"):
        found = segment(empty(shape), prompts, 5.0, short, settings(batch=4))
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: going on with batches of 2 prompts instead of 4"
    ]
    assert {len(planes) for _, planes, _, _ in short.calls} <= {1, 2}


def test_out_of_memory_again_is_an_error_that_names_the_setting():
    shape, truth, prompts = crowded()
    with pytest.raises(DeviceError, match="room for a batch of 2 prompts") as caught:
        segment(empty(shape), prompts, 5.0, Crowded((truth,) * 3, room=1, axis=2), settings(batch=4))
    assert "segmenter.batch" in str(caught.value.hint)


def test_progress_ends_at_its_total():
    _, truth, prompts = crowded()
    seen: list[tuple[int, int]] = []
    fake(noisy(truth), prompts, 5.0, progress=lambda done, total: seen.append((done, total)))
    done = [n for n, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (6 * len(prompts), 6 * len(prompts))


# --- the whole, with the weight-free segmenter ------------------------------------------------


@pytest.mark.parametrize("radii", [(9, 5, 5), (5, 9, 5), (5, 5, 9), (6, 6, 6)])
def test_an_ellipsoid_is_segmented_along_each_axis(radii):
    shape = (33, 37, 41)
    truth = ellipsoid(shape, (16, 18, 20), radii)
    (one,) = fake(noisy(truth), points((16.4, 17.6, 20)), 6.5)
    assert dice(place(one, shape), truth) > 0.8
    assert 0.3 < one.confidence <= 1


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_transposing_the_volume_transposes_the_masks(order):
    _, truth, prompts = crowded()
    volume = noisy(truth)
    straight = fake(volume, prompts, 5.0)
    turned = fake(volume.permute(order).contiguous(), VoxelPoints(prompts.zyx[:, order]), 5.0)
    for one, other in zip(straight, turned, strict=True):
        assert np.array_equal(one.mask.transpose(order), other.mask)
        assert tuple(one.origin_zyx[a] for a in order) == other.origin_zyx
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_touching_balls_stay_within_their_cubes():
    shape = (25, 25, 81)
    chain = np.zeros(shape, dtype=bool)
    for x in range(4, 80, 8):
        chain |= ellipsoid(shape, (12, 12, x), (4.5, 4.5, 4.5))
    (one,) = segment(empty(shape), points((12, 12, 36)), 4.0, oracle(chain), settings())
    half = half_window(4.0)
    assert one.origin_zyx[2] >= 36 - half
    assert one.origin_zyx[2] + one.mask.shape[2] <= 36 + half + 1
    # Along x the walk ends after extent x radius; the y and z axes see the rest of the cube.
    walked = fake(noisy(chain, 0.1), points((12, 12, 36)), 4.0)[0]
    assert walked.mask.shape[2] <= 2 * half + 1
    assert place(walked, shape)[12, 12, 36]


def test_background_gives_less_confidence_than_a_particle():
    shape = (25, 33, 33)
    truth = ellipsoid(shape, (12, 10, 10), (5, 5, 5))
    particle, ground = fake(noisy(truth), points((12, 10, 10), (12, 26, 26)), 5.0)
    assert particle.confidence > 2 * ground.confidence
