"""A detector finds what its net says is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from copick_cryosam.errors import DataError, DeviceError, InputError
from copick_cryosam.sasi.inference import Sasi
from copick_cryosam.sasi.model import SasiModel, save_model
from copick_cryosam.sasi.networks import Network, load_network
from copick_cryosam.sasi.points import ParticleClass
from copick_cryosam.sasi.settings import InferenceSettings, SasiSettings

CPU = torch.device("cpu")
CLASSES = (ParticleClass(name="bright", radius_vox=3.0), ParticleClass(name="brighter", radius_vox=4.0))


class Levels(Network):
    """Voxels above one level of the standardised tomogram are of the first class, above another of the second."""

    name, window, divisor, embedding = "levels", 8, 2, 1

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([float(first), float(second)]))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.levels
        return 20 * torch.cat([torch.zeros_like(x), x - first, 2 * x - first - second], dim=1)


PLAIN = SasiSettings.model_validate({"architecture": "deepfinder", "init": "none", "labels": {"radius": 1.0}})


def sasi(net: Network, inference: InferenceSettings | None = None, polarity="light") -> Sasi:
    model = SasiModel(network=net, settings=PLAIN, classes=CLASSES, voxel_spacing=10.0, polarity=polarity)
    return Sasi(model, CPU, inference)


def spheres(shape, *balls) -> tuple[np.ndarray, Levels]:
    """A tomogram of balls of (centre, radius, height 1 or 3) in a little noise, and the net that knows them."""
    volume = np.random.default_rng(0).normal(scale=0.05, size=shape).astype(np.float32)
    where = np.indices(shape).reshape(3, -1).T
    for centre, radius, height in balls:
        inside = np.linalg.norm(where - centre, axis=1) <= radius
        volume.reshape(-1)[inside] = height
    one = 1 / volume.std()
    return 7 * volume + 100, Levels((0.5 - volume.mean()) * one, (2 - volume.mean()) * one)


# One of each class; the second hangs over the tomogram's edge.
BALLS = (((9, 12, 11), 3.0, 1.0), ((16, 30, 36), 4.0, 3.0))
SHAPE = (17, 31, 40)


def test_particles_of_both_classes_one_at_the_edge():
    (volume, net), told = spheres(SHAPE, *BALLS), []
    found = sasi(net).detect(volume, 10.05, progress=lambda *steps: told.append(steps))
    assert list(found.particles) == ["bright", "brighter"]
    assert [len(some) for some in found.particles.values()] == [1, 1]
    (one,), (other,) = found.particles.values()
    np.testing.assert_allclose(one.centroid_zyx, BALLS[0][0], atol=1e-6)
    inside = np.argwhere(np.linalg.norm(np.indices(SHAPE).T - BALLS[1][0], axis=3).T <= 4)
    np.testing.assert_allclose(other.centroid_zyx, inside.mean(axis=0), atol=1e-6)
    assert other.size == len(inside)
    assert 0.9 < one.score <= 1
    assert found.labels.dtype == np.uint8
    assert found.labels.shape == SHAPE
    assert np.bincount(found.labels.ravel()).tolist() == [volume.size - one.size - other.size, one.size, other.size]
    assert told[-1][0] == "windows"
    assert told[-1][1] == told[-1][2]


def test_dark_particles():
    volume, net = spheres(SHAPE, *BALLS)
    found = sasi(net, polarity="dark").detect(-volume)
    assert [len(some) for some in found.particles.values()] == [1, 1]


def test_the_result_does_not_depend_on_the_batch():
    volume, _ = spheres((16, 17, 30), *BALLS[:1])
    net = load_network(SasiSettings(architecture="deepfinder", init="none", window=12), len(CLASSES))
    one, many = (sasi(net, InferenceSettings(batch=batch, min_size=0)).detect(volume) for batch in (1, 5))
    assert one.labels.any()  # or the test could not fail
    assert np.array_equal(one.labels, many.labels)
    for a, b in zip(one.particles.values(), many.particles.values(), strict=True):
        np.testing.assert_allclose([x.score for x in a], [x.score for x in b], atol=1e-4)


def test_a_volume_smaller_than_the_window():
    volume, net = spheres((16, 17, 21), *BALLS[:1])
    net.window = 48
    (one,) = sasi(net).detect(volume).particles["bright"]
    np.testing.assert_allclose(one.centroid_zyx, BALLS[0][0], atol=1e-6)


def test_nothing_found():
    found = sasi(Levels(50, 60)).detect(spheres(SHAPE, *BALLS)[0])
    assert found.particles == {"bright": [], "brighter": []}
    assert not found.labels.any()


def test_least_size_is_a_share_of_the_label_sphere():
    volume, net = spheres((20, 30, 41), ((9, 8, 8), 3.0, 1.0), ((9, 20, 30), 2.0, 1.0))
    share = 33 / (4 / 3 * np.pi * 27)  # the smaller ball has 33 voxels
    kept = sasi(net, InferenceSettings(min_size=share * 0.99)).detect(volume)
    fewer = sasi(net, InferenceSettings(min_size=share * 1.01)).detect(volume)
    assert (len(kept.particles["bright"]), len(fewer.particles["bright"])) == (2, 1)


def test_another_voxel_spacing_is_refused():
    volume, net = spheres(SHAPE, *BALLS)
    for found in (10.2, 5.0, float("nan")):
        with pytest.raises(InputError, match=f"expected 10 Å, which the model was trained at, found {found:g} Å"):
            sasi(net).detect(volume, found)


def test_volumes_and_nets_that_give_nothing_usable():
    with pytest.raises(DataError, match="expected at least 16 voxels a side"):
        sasi(Levels(1, 2)).detect(np.ones((8, 30, 30), dtype=np.float32))
    with pytest.raises(DataError, match="expected probabilities, found NaN"):
        sasi(Levels(1, float("nan"))).detect(spheres(SHAPE, *BALLS)[0])


def test_a_saved_detector_finds_the_same(tmp_path):
    settings = SasiSettings.model_validate(
        {"architecture": "deepfinder", "init": "none", "window": 12, "inference": {"min_size": 0.01}}
    )
    model = SasiModel(
        network=load_network(settings, 2), settings=settings, classes=CLASSES, voxel_spacing=10.0, polarity="dark"
    )
    volume, _ = spheres((16, 17, 20), *BALLS[:1])
    there = Sasi(model, CPU).detect(volume)
    back = Sasi.load(save_model(tmp_path / "model", model), "cpu").detect(volume)
    assert np.array_equal(there.labels, back.labels)
    assert there.labels.any()  # or the test could not fail


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path):
    with pytest.raises(DeviceError, match="expected cuda, found none"):
        Sasi.load(tmp_path / "model", "cuda")
