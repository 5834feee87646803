"""From a click to picks on a phantom of balls, with the weight-free models."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from copick_cryosam.config import MatchingSettings, preset
from copick_cryosam.errors import CryosamError, DataError, DeviceError, InputError, SeedError
from copick_cryosam.matching import whiten_dense
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.types import VoxelPoints

SHAPE = (41, 64, 67)
RADIUS = 5.0
CENTRES = np.array(
    [
        [20, 16, 16],
        [20, 16, 48],
        [12, 32, 32],
        [28, 46, 14],
        [30, 50, 52],
        [10, 52, 30],
        [30, 30, 56],
        [10, 14, 32],
        [30, 30, 14],
        [14, 44, 50],
        [32, 14, 34],
        [30, 48, 34],
    ],
    dtype=float,
)


def phantom(sign: float = -1.0, centres=CENTRES, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    values = 0.4 * np.random.default_rng(seed).standard_normal(SHAPE)
    for centre in centres:
        distance = np.sqrt(((np.indices(SHAPE) - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0))
        values += sign / (1 + np.exp(2 * (distance - RADIUS)))
    return (17 * values + offset).astype(np.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> CryoSAM:
    return CryoSAM.from_preset("fake", device="cpu")


@pytest.fixture(scope="module")
def dark() -> np.ndarray:
    return phantom()


def distances(instances) -> np.ndarray:
    """From every true centre to the nearest pick."""
    found = np.array([one.centroid_zyx for one in instances]).reshape(-1, 3)
    return np.linalg.norm(CENTRES[:, None] - found, axis=2).min(axis=1)


@pytest.mark.parametrize(("sign", "offset"), [(-1.0, 0.0), (1.0, 500.0)])
def test_one_click_finds_all_of_either_polarity(model, sign, offset):
    volume = phantom(sign, offset=offset)
    untouched = volume.copy()
    picks = model.pick(volume, [[21, 15, 17]], RADIUS)
    assert (distances(picks) < 1.5).all(), distances(picks)
    scores = [one.score for one in picks]
    assert scores == sorted(scores, reverse=True)
    assert len(picks) <= len(CENTRES) + 2
    for one in picks:
        assert one.mask.any()
        assert all(o >= 0 and o + n <= s for o, n, s in zip(one.origin_zyx, one.mask.shape, SHAPE, strict=True))
        assert 0 <= one.confidence <= 1
    sizes = np.array([one.size for one in picks])
    assert np.median(sizes) == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.4)
    np.testing.assert_array_equal(volume, untouched)


def test_picks_are_plain_numbers(model, dark):
    best = model.pick(dark, [CENTRES[0]], RADIUS)[0]
    values = {name: value for name, value in vars(best).items() if name != "mask"}
    values |= {"centroid": best.centroid_zyx, "size": best.size}
    assert json.loads(json.dumps(values, allow_nan=False))["origin_zyx"] == list(best.origin_zyx)


def test_picking_twice_gives_the_same(model, dark):
    one, other = (model.pick(dark, [CENTRES[0]], RADIUS) for _ in range(2))
    assert [a.centroid_zyx for a in one] == [b.centroid_zyx for b in other]
    assert [a.score for a in one] == [b.score for b in other]


def test_several_seeds_and_one_that_is_off(model, dark):
    picks = model.pick(dark, [CENTRES[0], CENTRES[3] + [0, 2, -1], CENTRES[6]], RADIUS)
    assert (distances(picks) < 1.5).all()


def test_segmenting_points_keeps_their_order(model, dark):
    points = CENTRES[[4, 0, 9]] + [0.4, -1.0, 0.6]
    found = model.segment(dark, points, RADIUS)
    assert [one.prompt_zyx for one in found] == [tuple(point) for point in points]
    for one, centre in zip(found, CENTRES[[4, 0, 9]], strict=True):
        assert np.linalg.norm(np.array(one.centroid_zyx) - centre) < 1.5
        assert one.similarity == 1
        assert one.score == one.confidence > 0


def test_seeds_of_one_tomogram_find_particles_of_another(model, dark):
    elsewhere = [(20, 30, 30), (12, 12, 50), (30, 52, 12)]
    seeds = VoxelPoints(CENTRES[:2])
    first = model.open(dark, seeds, RADIUS)
    assert first.polarity == "dark"
    seeded = model.seed(first, seeds, RADIUS)
    query = model.query([seeded])
    second = model.open(phantom(centres=elsewhere, seed=1), None, RADIUS, polarity=first.polarity)
    found = model.search(second, query, [seeded], RADIUS)
    at = np.array([one.centroid_zyx for one in found.instances])
    for centre in elsewhere:
        assert np.linalg.norm(at - centre, axis=1).min() < 1.5
    assert found.decodes > 0
    assert set(found.seconds) >= {"match", "segment"}
    assert len(found.expected_precision) == len(found.proposals)
    roi = np.zeros(SHAPE, bool)
    roi[:, :, 40:] = True
    inside = model.search(second, query, [seeded], RADIUS, roi=roi)
    assert (inside.proposals.points.zyx[:, 2] > 39).all()
    assert any(np.linalg.norm(np.array(one.centroid_zyx) - elsewhere[1]) < 1.5 for one in inside.instances)


def test_the_query_is_the_mean_over_all_voxels_of_all_seeds(model, dark):
    seeds = VoxelPoints(CENTRES[:3])
    tomogram = model.open(dark, seeds, RADIUS)
    seeded = [model.seed(tomogram, VoxelPoints(some), RADIUS) for some in (seeds.zyx[:1], seeds.zyx[1:])]
    assert [len(one.features) for one in seeded] == [1, 2]
    pooled = tomogram.features.pool([one for some in seeded for one in some.instances])
    query = model.query(seeded, seeded[1:])
    np.testing.assert_allclose(query.positives, pooled[None], rtol=1e-4)
    # what must not be found may be of several kinds: negatives are not pooled
    np.testing.assert_allclose(sorted(query.negatives.tolist()), sorted(seeded[1].features.tolist()), rtol=1e-4)


@pytest.mark.parametrize("how", ["none", "mean", "full"])
def test_the_tomogram_is_whitened_as_the_settings_say(model, dark, how):
    settings = model.settings.model_copy(update={"matching": MatchingSettings(whitening=how)})
    opened = CryoSAM(model.encoder, model.segmenter, settings, model.device).open(dark, None, RADIUS, polarity="dark")
    encoded = model.encoder.encode(opened.volume)
    assert torch.equal(opened.features.values, encoded.values) == (how == "none")
    whiten_dense(encoded, settings.matching)
    assert torch.equal(opened.features.values, encoded.values)


def test_seeds_that_disagree_make_several_prototypes_where_they_may(model, dark):
    seeds = VoxelPoints(CENTRES[:3])
    strict = MatchingSettings(prototypes=3, prototype_similarity=1.0)
    several = CryoSAM(
        model.encoder, model.segmenter, model.settings.model_copy(update={"matching": strict}), model.device
    )
    seeded = several.seed(several.open(dark, seeds, RADIUS), seeds, RADIUS)
    query = several.query([seeded])
    np.testing.assert_allclose(sorted(query.positives.tolist()), sorted(seeded.features.tolist()), rtol=1e-5)


def test_seeds_without_a_mask_do_not_count(model, dark, monkeypatch):
    seeds = VoxelPoints(CENTRES[:2])
    tomogram = model.open(dark, seeds, RADIUS)
    whole = model.seed(tomogram, seeds, RADIUS)
    segment = model._segment

    def loses_the_first(*arguments, **more):
        masks = segment(*arguments, **more)
        return [replace(masks[0], mask=np.zeros((0, 0, 0), bool)), *masks[1:]]

    monkeypatch.setattr(model, "_segment", loses_the_first)
    seeded = model.seed(tomogram, seeds, RADIUS)
    assert [one.size > 0 for one in seeded.instances] == [False, True]
    np.testing.assert_array_equal(seeded.features, whole.features[1:])
    np.testing.assert_allclose(model.query([seeded]).positives, whole.features[1:], rtol=1e-6)


def test_particles_cut_by_the_last_voxels_do_not_stop_the_rest(model):
    """Odd sides leave half a cell beyond the tomogram: a proposal there must not fall outside it."""
    volume = phantom(centres=[*CENTRES, (40, 63, 66), (40, 2, 66)])
    assert (distances(model.pick(volume, [CENTRES[0]], RADIUS)) < 1.5).all()


def test_progress_names_the_stages(model, dark):
    told: list[tuple[str, int, int]] = []
    model.pick(dark, [CENTRES[0]], RADIUS, progress=lambda *step: told.append(step))
    assert {"encode", "segment"} <= {stage for stage, _, _ in told}
    for stage in ("encode", "segment"):
        steps = [step for step in told if step[0] == stage]
        assert steps[-1][1] == steps[-1][2] > 0


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "at least one, found none"),
        ([[20, 16, 70]], r"inside \(41, 64, 67\), found 1 outside, the first at \(20, 16, 70\)"),
        ([[20, 16, 16], [60, 16, 16], [-1, 0, 0]], r"found 2 outside, the first at \(60, 16, 16\)"),
        ([[np.nan, 16, 16]], "found 1 outside"),
    ],
)
def test_seeds_outside_are_refused(model, dark, seeds, message):
    for call in (model.pick, model.segment):
        with pytest.raises(SeedError, match=message):
            call(dark, seeds, RADIUS)


@pytest.mark.parametrize("radius", [0, -3.0, 0.9, 201, np.nan, np.inf])
def test_an_impossible_radius_is_refused(model, dark, radius):
    with pytest.raises(InputError, match="radius: expected 1 to 200 voxels"):
        model.pick(dark, [CENTRES[0]], radius)


def test_unusable_volumes_are_refused(model, dark):
    broken = dark.copy()
    broken[0, 0, 0] = np.nan
    for volume in (broken, dark[:, :10], dark[0], np.zeros(SHAPE, np.float32)):
        with pytest.raises(DataError, match="volume: expected"):
            model.pick(volume, [[5, 5, 5]], RADIUS)


def test_the_wrong_polarity_is_refused(dark):
    told = CryoSAM.from_settings(preset("fake").model_copy(update={"polarity": "light", "device": "cpu"}))
    with pytest.raises(SeedError, match="expected light particles, found the seeds darker"):
        told.pick(dark, [CENTRES[0]], RADIUS)


@pytest.mark.parametrize("spacing", [0.0, -10.0, np.nan, 1e4])
def test_an_impossible_voxel_spacing_is_refused(model, dark, spacing):
    with pytest.raises(InputError, match=r"voxel spacing: expected 0\.5 to 100 Å"):
        model.pick(dark, [CENTRES[0]], RADIUS, voxel_spacing=spacing)


def test_opening_without_seeds_needs_a_polarity(model, dark):
    with pytest.raises(InputError, match="polarity: expected dark or light, found 'Dark'"):
        model.open(dark, None, RADIUS, polarity="Dark")
    with pytest.raises(ValueError, match="expected seeds or a decision"):
        model.open(dark, None, RADIUS)


def test_seeds_on_nothing_are_refused(model, monkeypatch):
    flat = phantom(centres=[])
    with pytest.raises(SeedError):
        model.pick(flat, [[20, 20, 40]], RADIUS)
    opened = model.open(flat, None, RADIUS, polarity="dark")
    decode = model.segmenter.decode

    def finds_nothing(*arguments):
        decoded = decode(*arguments)
        return replace(decoded, logits=decoded.logits.clamp(max=-1))

    monkeypatch.setattr(model.segmenter, "decode", finds_nothing)
    with pytest.raises(SeedError, match="at least one that can be segmented, found 1 without a mask"):
        model.seed(opened, VoxelPoints(np.array([20, 30, 30])), RADIUS)


def test_unknown_presets_and_devices_are_refused(monkeypatch):
    with pytest.raises(InputError, match="expected one of"):
        CryoSAM.from_preset("nosuch")
    with pytest.raises(InputError, match="device"):
        CryoSAM.from_preset("fake", device="tpu")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="expected cuda"):
        CryoSAM.from_preset("fake", device="cuda")
    assert issubclass(DeviceError, CryosamError)
