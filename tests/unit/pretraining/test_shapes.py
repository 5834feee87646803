"""Random complexes: the radius asked for, centred, and of the family asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from copick_cryosam.pretraining.altered_families import ALTERED_FAMILIES, WHOLE
from copick_cryosam.pretraining.doubled_families import DOUBLED_FAMILIES
from copick_cryosam.pretraining.fresh_families import FRESH_FAMILIES, LOOK_ALIKES, fresh_shapes
from copick_cryosam.pretraining.pool import FAMILIES_OF, HELD_OUT_FAMILIES, Supply, draw_sample, draw_shapes
from copick_cryosam.pretraining.ranking_families import RANKING_FAMILIES
from copick_cryosam.pretraining.shapes import FAMILIES, Shape, finish, random_shape, read_shape
from copick_cryosam.pretraining.wider_families import WIDER_FAMILIES

ALL = FAMILIES | ALTERED_FAMILIES | DOUBLED_FAMILIES | FRESH_FAMILIES | RANKING_FAMILIES | WIDER_FAMILIES


def test_no_family_is_of_two_sorts():
    sorts = (FAMILIES, ALTERED_FAMILIES, DOUBLED_FAMILIES, FRESH_FAMILIES, RANKING_FAMILIES, WIDER_FAMILIES)
    assert len(ALL) == sum(len(sort) for sort in sorts)


def test_no_pool_draws_what_is_kept_to_choose_or_to_report_on():
    for families in FAMILIES_OF.values():
        assert not set(families) & (set(FRESH_FAMILIES) | set(HELD_OUT_FAMILIES))
    assert not set(WHOLE) & (set(FRESH_FAMILIES) | set(RANKING_FAMILIES) | set(HELD_OUT_FAMILIES))


@pytest.mark.parametrize("families", sorted(FAMILIES_OF))
def test_a_pool_draws_the_families_asked_for(families):
    rng = np.random.default_rng(2)
    shapes = [shape for _ in range(20) for shape in draw_shapes(rng, 5, Supply(families=FAMILIES_OF[families]))]
    assert {shape.family for shape in shapes} == set(FAMILIES_OF[families])


def test_a_pool_draws_maps_and_radii_asked_for():
    rng = np.random.default_rng(3)
    some: list[Shape] = [random_shape(rng, family="barrel", radius=9.0, name=name) for name in ("map-a", "map-b")]
    supply = Supply(maps=some, radii=(12.0, 13.0))
    drawn = [shape for _ in range(6) for shape in draw_shapes(rng, 5, supply)]
    names = [shape.name for shape in drawn]
    assert {"map-a", "map-b"} <= set(names)
    others = [shape.radius for shape in drawn if shape.name not in ("map-a", "map-b")]
    assert np.median(others) == pytest.approx(12.5, rel=0.2)


def test_a_pool_holds_about_as_many_of_each_kind_as_asked_for():
    size = (48, 96, 96)

    def inside(counts: tuple[int, int] | None) -> float:
        sample = draw_sample(np.random.default_rng(5), Supply(shape_zyx=size, radii=(4.0, 5.0), counts=counts))
        within = [((centres >= 0) & (centres < np.array(size))).all(axis=1) for centres in sample.centres]
        kinds = len(np.unique(np.concatenate(sample.kinds)))
        return float(np.mean([some.sum() for some in within]) / kinds)

    assert 1.5 <= inside((2, 3)) <= 3.5
    assert inside(None) > 6


@pytest.mark.parametrize("kinds", [(2, 2), (7, 9)])
def test_a_pool_holds_as_many_kinds_as_asked_for(kinds):
    supply = Supply(shape_zyx=(40, 64, 64), radii=(4.0, 5.0), counts=(1, 2), kinds=kinds)
    found = [draw_sample(np.random.default_rng(seed), supply).kinds[0] for seed in range(3)]
    assert all(some.max() < kinds[1] for some in found)
    assert max(len(np.unique(some)) for some in found) >= kinds[0] - 1


@pytest.mark.parametrize("seed", range(3))
def test_fresh_kinds_are_of_families_of_their_own_and_some_look_alike(seed):
    shapes = fresh_shapes(None, np.random.default_rng(seed))
    families = [shape.family for shape in shapes]
    assert set(families) <= set(FRESH_FAMILIES)
    assert len(set(families)) == len(families) - LOOK_ALIKES
    alike = [shape.radius for shape in shapes if shape.family == families[-1]]
    assert len(alike) == LOOK_ALIKES + 1
    assert max(alike) < 1.5 * min(alike)
    assert len({shape.name for shape in shapes}) == len(shapes)


@pytest.mark.parametrize("family", sorted(ALL))
@pytest.mark.parametrize("radius", [6.0, 11.0])
def test_every_family_has_about_the_radius_asked_for(family, radius):
    drawn = [random_shape(np.random.default_rng(s), family=family, radius=radius, families=ALL) for s in range(5)]
    found = [shape.radius for shape in drawn]
    # outliers of irregular ones are too faint for the envelope
    least = 0.5 if family == "field" else 0.65
    assert least * radius < min(found) <= max(found) < 1.35 * radius, found


@pytest.mark.parametrize("family", sorted(ALL))
def test_a_shape_is_a_centred_cube_of_density_in_its_envelope(family):
    shape = random_shape(np.random.default_rng(3), family=family, radius=8.0, families=ALL)
    edge = shape.density.shape[0]
    assert shape.family == family
    assert shape.density.shape == shape.mask.shape == (edge,) * 3
    assert edge % 2 == 1
    assert shape.density.dtype == np.float32
    assert shape.density.min() >= 0
    assert 0.7 < shape.density.max() <= 1.5
    assert np.abs(np.array(ndimage.center_of_mass(shape.density)) - (edge - 1) / 2).max() < 0.25
    assert shape.density[shape.mask].sum() > 0.75 * shape.density.sum()
    # nothing is cut off
    rim = np.ones_like(shape.mask)
    rim[1:-1, 1:-1, 1:-1] = False
    assert shape.density[rim].max() < 0.1
    assert not shape.mask[rim].any()


def test_the_radius_holds_95_percent_of_the_envelope():
    shape = random_shape(np.random.default_rng(0), family="globule", radius=9.0)
    distance = np.linalg.norm(np.argwhere(shape.mask) - (shape.mask.shape[0] - 1) / 2, axis=1)
    assert (distance <= shape.radius).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("family", ["globule", "barrel", "assembly"])
def test_lumps_of_a_width_keep_the_size_and_add_detail(family):
    """A shape of lumps differs from its own blur more than one of whole domains does."""

    def detail(lump):
        shapes = [random_shape(np.random.default_rng(seed), family=family, radius=16.0, lump=lump) for seed in range(3)]
        blurs = [ndimage.gaussian_filter(s.density, 1.5) for s in shapes]
        fine = [np.std(s.density - blur) / s.density.std() for s, blur in zip(shapes, blurs, strict=True)]
        return np.mean([s.radius for s in shapes]), np.mean(fine)

    (whole_radius, whole), (radius, fine) = detail(None), detail(1.2)
    assert abs(radius / whole_radius - 1) < 0.2
    assert fine > 1.2 * whole


def test_the_same_seed_gives_the_same_shape_and_another_one_another():
    one, same, other = (random_shape(np.random.default_rng(seed), radius=7.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.density, same.density)
    assert one.density.shape != other.density.shape or not np.array_equal(one.density, other.density)


def test_drawn_radii_lie_in_the_range_stated():
    rng = np.random.default_rng(5)
    radii = [random_shape(rng).radius for _ in range(25)]
    assert min(radii) > 4.5 * 0.6
    assert max(radii) < 15 * 1.4
    assert np.ptp(radii) > 3


@pytest.mark.parametrize("size", [21, 22])
@pytest.mark.parametrize("at", [(8.0, 10.3, 12.0), (11.5, 9.0, 10.0)])
def test_finishing_centres_an_off_centre_ball(size, at):
    distance = np.linalg.norm(np.indices((size,) * 3) - np.array(at)[:, None, None, None], axis=0)
    shape = finish("ball", "test", (7 / (1 + np.exp(2 * (distance - 5)))).astype(np.float32))
    middle = (shape.density.shape[0] - 1) / 2
    assert np.abs(np.array(ndimage.center_of_mass(shape.density)) - middle).max() < 0.1
    # the envelope is generous: it ends where the smoothed density has fallen to a quarter
    assert 5 < shape.radius < 6
    assert shape.density[(int(middle),) * 3] == pytest.approx(1, abs=0.1)


def test_cavities_are_part_of_the_envelope():
    distance = np.linalg.norm(np.indices((41,) * 3) - 20, axis=0)
    shell = finish("shell", "test", np.exp(-((distance - 9) ** 2) / 4).astype(np.float32))
    middle = shell.mask.shape[0] // 2
    assert shell.density[middle, middle, middle] < 0.1
    assert shell.mask[middle, middle, middle]


def test_maps_are_read_from_mrc_files(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    original = random_shape(np.random.default_rng(4), family="globule", radius=7.0)
    with mrcfile.new(tmp_path / "9xyz.mrc") as file:
        file.set_data(original.density * 30)
    shape = read_shape(tmp_path / "9xyz.mrc")
    assert (shape.name, shape.family) == ("9xyz", "map")
    assert shape.radius == pytest.approx(original.radius, rel=0.05)
