"""The second look's rotational correlation, on particles whose poses are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from copick_cryosam.alignment import NEAR, Aligner
from copick_cryosam.config import AlignmentSettings
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.rotations import angles_between, spacing_of
from copick_cryosam.second_look import Look, refine_poses
from copick_cryosam.types import VoxelPoints
from copick_cryosam.wedge import Wedge

FULL = Wedge(-90, 90)
ROTATIONS = 800


def turned(density, rotation):
    """particle(x) = reference(R^T (x - c))."""
    middle = (np.array(density.shape) - 1) / 2
    return ndimage.affine_transform(density, rotation.T, middle - rotation.T @ middle, order=1)


@pytest.fixture(scope="module")
def particle():
    shape = random_shape(np.random.default_rng(5), family="globule", radius=8, name="globule")
    return shape.density, shape.radius


@pytest.fixture(scope="module")
def scene(particle):
    """A volume of odd, non-cubic shape with particles at known poses, and noise."""
    density, _ = particle
    rng = np.random.default_rng(1)
    volume = rng.normal(scale=0.3, size=(49, 72, 131)).astype(np.float32)
    centres = np.array([[24, 20, 20], [24, 50, 24], [23, 22, 60], [26, 48, 66], [24, 21, 106], [25, 50, 107]])
    rotations = np.stack([np.eye(3), *Rotation.random(5, random_state=2).as_matrix()])
    half = density.shape[0] // 2
    for centre, rotation in zip(centres, rotations, strict=True):
        box = tuple(slice(c - half, c + half + 1) for c in centre)
        volume[box] += turned(density, rotation)
    return volume, centres.astype(float), rotations


@pytest.fixture(scope="module")
def aligner(particle):
    torch.set_num_threads(1)
    return Aligner(particle[1], AlignmentSettings(rotations=ROTATIONS), torch.device("cpu"))


def test_poses_are_found_again(aligner, scene):
    volume, centres, rotations = scene
    found = aligner.look(torch.from_numpy(volume), VoxelPoints(centres), FULL)
    template = aligner.template(found, 0)
    coarse = aligner.align(template, found)
    assert angles_between(coarse.rotations, rotations).max() < spacing_of(ROTATIONS)
    fine = aligner.refine(template, found, coarse)
    assert (fine.score >= coarse.score - 1e-5).all()
    assert np.median(angles_between(fine.rotations, rotations)[1:]) < 6


def test_a_shift_is_found_and_in_voxels(aligner, scene):
    volume, centres, _ = scene
    moved = np.array([aligner.pixel, 0, -aligner.pixel])
    at = aligner.look(torch.from_numpy(volume), VoxelPoints(centres), FULL)
    beside = aligner.look(torch.from_numpy(volume), VoxelPoints(centres - moved), FULL)
    found = aligner.align(aligner.template(at, 0), beside)
    np.testing.assert_allclose(found.shifts, np.broadcast_to(moved, found.shifts.shape), atol=1e-5)


def test_the_same_kind_correlates_more_than_another(aligner, scene, particle):
    volume, centres, _ = scene
    other = random_shape(np.random.default_rng(8), family="rod", radius=8, name="rod").density
    half = other.shape[0] // 2
    mixed = np.pad(volume, ((0, 0), (0, 0), (0, 2 * half + 20)))
    centre = np.array([24, 36, 131 + half])
    mixed[tuple(slice(c - half, c + half + 1) for c in centre)] += other
    found = aligner.look(torch.from_numpy(mixed), VoxelPoints(np.vstack([centres, centre])), FULL)
    score = aligner.align(aligner.template(found, 0), found).score
    assert score[:-1].min() > score[-1] + 0.1
    assert score.max() <= 1 + 1e-4


def test_the_average_of_aligned_particles_fits_better_than_one(aligner, scene):
    volume, centres, rotations = scene
    found = aligner.look(torch.from_numpy(volume), VoxelPoints(centres), FULL)
    members = [(found, i, rotations[i], np.zeros(3)) for i in range(5)]
    averaged = aligner.align(aligner.averaged(members), found.only(5)).score[0]
    single = aligner.align(aligner.template(found, 0), found.only(5)).score[0]
    assert averaged > single + 0.02


def test_what_neither_wedge_measured_does_not_count(aligner, scene):
    """Changing what lies in the missing wedge changes no score."""
    volume, centres, _ = scene
    wedge = Wedge(-45, 45)
    frequencies = torch.stack(
        torch.meshgrid(*(torch.fft.fftfreq(n).double() for n in volume.shape), indexing="ij"), dim=-1
    )
    far_inside = (1 - Wedge(-65, 65).measured(frequencies).numpy()) * (frequencies.norm(dim=-1).numpy() < 0.15)
    dirt = np.fft.ifftn(np.fft.fftn(np.random.default_rng(3).normal(size=volume.shape)) * far_inside).real
    dirty = (volume + 0.3 * dirt / dirt.std()).astype(np.float32)

    def change(wedge: Wedge) -> float:
        scores = []
        for each in (volume, dirty):
            found = aligner.look(torch.from_numpy(each), VoxelPoints(centres), wedge)
            scores.append(aligner.align(aligner.template(found, 0), found).score[1:])
        return float(np.abs(scores[0] - scores[1]).mean())

    assert change(wedge) < 0.5 * change(FULL)


def test_kept_poses_are_made_finer_and_others_stay(aligner, scene):
    volume, centres, rotations = scene
    moved = np.array([0.3, -0.4, 0.2])
    boxes = aligner.look(torch.from_numpy(volume), VoxelPoints(np.vstack([centres[:1], centres[1:] + moved])), FULL)
    template = aligner.template(boxes, 0)
    coarse = aligner.align(template, boxes)
    seed = (boxes, 0, np.eye(3), np.zeros(3))
    look = Look(
        first=np.zeros((6, 0)),
        second=np.zeros((6, 0)),
        parts=np.zeros((6, 0), dtype=np.float32),
        seed_parts=np.zeros(0, dtype=np.float32),
        centre=np.zeros(6),
        sure=np.zeros(6),
        aligned=coarse,
        members=np.array([1, 2]),
        boxes=boxes,
        seeds=[seed],
        alone=template,
        template=template,
        without={1: template, 2: template},
    )
    fine = refine_poses(aligner, look, np.array([2, 3, 4]))
    refined, before, true = ([*a[1:5]] for a in (fine.rotations, coarse.rotations, rotations))
    assert np.median(angles_between(np.array(refined), np.array(true))) < 5
    assert np.median(angles_between(np.array(before), np.array(true))) > 8
    off = np.linalg.norm(fine.shifts[1:5] + moved, axis=1)
    assert np.median(off) < 0.5 * np.linalg.norm(moved)
    np.testing.assert_array_equal(fine.rotations[5], coarse.rotations[5])
    np.testing.assert_array_equal(fine.shifts[5], coarse.shifts[5])
    nothing = refine_poses(aligner, replace(look, members=np.array([], int), without={}), np.array([], int))
    np.testing.assert_array_equal(nothing.rotations, coarse.rotations)


def test_no_candidates_are_no_error(aligner, scene):
    found = aligner.look(torch.from_numpy(scene[0]), VoxelPoints(np.zeros((0, 3))), FULL)
    template = aligner.template(aligner.look(torch.from_numpy(scene[0]), VoxelPoints(scene[1][:1]), FULL), 0)
    assert len(aligner.align(template, found)) == 0


def test_points_at_the_edge_are_looked_at(aligner, scene):
    corner = VoxelPoints(np.array([[0, 0, 0], np.array(scene[0].shape) - 1]))
    found = aligner.look(torch.from_numpy(scene[0]), corner, Wedge())
    assert torch.isfinite(torch.view_as_real(found.spectra)).all()


def test_poses_sought_in_half_precision_are_scored_in_full(aligner, scene, particle):
    volume, centres, _ = scene
    exact, rough = (
        Aligner(particle[1], AlignmentSettings(rotations=ROTATIONS, precision=precision), torch.device("cpu"))
        for precision in ("fp32", "bf16")
    )
    boxes = exact.look(torch.from_numpy(volume), VoxelPoints(centres), Wedge(-60, 60))
    one, other = (each.align(each.template(boxes, 0), boxes) for each in (exact, rough))
    # another pose may be taken for the best, one that is nearly as good
    assert (other.score <= one.score + 1e-5).all()
    np.testing.assert_allclose(other.score, one.score, atol=5e-3)
    again = exact._compare(
        exact.template(boxes, 0),
        boxes.spectra,
        boxes.wedge,
        torch.from_numpy(other.rotations).float()[:, None],
        torch.from_numpy(other.shifts / exact.pixel).float()[:, None],
    )
    np.testing.assert_allclose(again[:, 0, 0].numpy(), other.score, atol=1e-4)


def test_several_templates_are_turned_as_each_alone(aligner, scene):
    volume, centres, rotations = scene
    boxes = aligner.look(torch.from_numpy(volume), VoxelPoints(centres), Wedge(-60, 60))
    made = aligner.halved([(boxes, i, rotations[i], np.zeros(3)) for i in range(5)])
    templates = [made.whole, *made.halves, aligner.template(boxes, 0)]
    # an average of two keeps a missing wedge, that of more has none
    assert [one.wedge is None for one in templates] == [True, True, False, False]
    for one, turned in zip(templates, aligner.turn(templates), strict=True):
        alone = aligner.align(one, boxes)
        together = aligner.align_turned(turned, boxes)
        np.testing.assert_array_equal(together.score, alone.score)
        np.testing.assert_array_equal(together.rotations, alone.rotations)
    some = aligner.align(templates[0], boxes, near=rotations[3])
    assert (angles_between(some.rotations, rotations[3]) <= NEAR).all()
    assert (some.score <= aligner.align(templates[0], boxes).score + 1e-5).all()
