"""Training: reproducible, resumable, able to learn, and refusing what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from copick_cryosam.errors import DataError, InputError
from copick_cryosam.sasi import checkpoint as saved
from copick_cryosam.sasi.points import LabelledPoints, ParticleClass, TrainingTomogram
from copick_cryosam.sasi.settings import SASI_PRESETS, SasiSettings, sasi_settings
from copick_cryosam.sasi.training import Trained, train
from copick_cryosam.types import VoxelPoints

CLASSES = [ParticleClass(name="small", radius_vox=2.5), ParticleClass(name="large", radius_vox=4.0)]
CPU = torch.device("cpu")


def tomogram(points: int = 8, seed: int = 0) -> TrainingTomogram:
    """Bright balls of two sizes in noise, each labelled."""
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(32, 40, 48)).astype(np.float32)
    centres = np.array(
        [(8 + 14 * (k % 2), 10 + 10 * (k // 2 % 3), 8 + 9 * (k % 4)) for k in range(points)], dtype=float
    )
    numbers = np.array([1 + k % 2 for k in range(points)], dtype=np.int64)
    at = np.stack(np.indices(volume.shape), axis=-1)
    for centre, number in zip(centres, numbers, strict=True):
        volume[np.linalg.norm(at - centre, axis=-1) <= CLASSES[number - 1].radius_vox] += 3
    labelled = LabelledPoints(
        points=VoxelPoints(centres), classes=numbers, weights=np.ones(points), origins=("test",) * points
    )
    return TrainingTomogram(name="run", volume=volume, labelled=labelled)


def settings(**training: Any) -> SasiSettings:
    """Every part of the method, a few steps of small windows."""
    plan = {
        "steps": 4,
        "batch": 2,
        "check_every": 2,
        "precision": "fp32",
        "patience": None,
        "held_out_from": 4,
        **training,
    }
    over = {"window": 8, "training": plan, "self_supervision": {"mode": "iss", "steps": 2}}
    return sasi_settings(over, SASI_PRESETS["paper"])


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.network.parameters()])


@pytest.mark.parametrize("mode", ["iss", "pss"])
def test_two_trainings_of_one_seed_are_equal_and_of_another_are_not(mode: str) -> None:
    over = {"self_supervision": {"mode": mode}}
    first, second = (train([tomogram()], CLASSES, sasi_settings(over, settings()), CPU) for _ in range(2))
    assert first.curve == second.curve
    assert torch.equal(weights(first), weights(second))
    other = train([tomogram()], CLASSES, sasi_settings(over, settings(seed=1)), CPU)
    assert not torch.equal(weights(first), weights(other))


def test_the_curve_says_what_was_computed_in_each_phase() -> None:
    trained = train([tomogram()], CLASSES, settings(), CPU)
    assert [(entry["phase"], entry["step"]) for entry in trained.curve] == [
        ("self-supervised", 2),
        ("supervised", 4),
        ("supervised", 6),
    ]
    assert set(trained.curve[0]) == {"phase", "step", "contrastive"}
    assert set(trained.curve[1]) == {"phase", "step", "supervised", "consistency", "loss", "held_out"}
    assert trained.best_step in (2, 4)


def _kill_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("mode", ["iss", "pss"])
def test_a_killed_training_goes_on_to_the_same_result(tmp_path: Path, step: int, mode: str) -> None:
    plan = sasi_settings({"self_supervision": {"mode": mode}}, settings(steps=6))
    whole = train([tomogram()], CLASSES, plan, CPU)
    folder = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train([tomogram()], CLASSES, plan, CPU, checkpoint=folder, progress=_kill_at(step))
    seen: list[int] = []
    resumed = train(
        [tomogram()], CLASSES, plan, CPU, checkpoint=folder, progress=lambda stage, done, total: seen.append(done)
    )
    assert seen[0] == step // 2 * 2 + 1  # on from the last check
    assert resumed.curve == whole.curve
    assert resumed.best_step == whole.best_step
    assert torch.equal(weights(resumed), weights(whole))
    saved.remove(folder)
    assert not folder.exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    train([tomogram()], CLASSES, settings(), CPU, checkpoint=tmp_path)
    with pytest.raises(InputError, match=r"expected one of this training.*--no-resume"):
        train([tomogram()], CLASSES, settings(learning_rate=0.5), CPU, checkpoint=tmp_path)
    with pytest.raises(InputError, match="expected one of this training"):
        train([tomogram(points=6)], CLASSES, settings(), CPU, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / saved.NAME).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="expected one of this program"):
        train([tomogram()], CLASSES, settings(), CPU, checkpoint=tmp_path)


def test_a_finished_training_is_not_made_again(tmp_path: Path) -> None:
    first = train([tomogram()], CLASSES, settings(), CPU, checkpoint=tmp_path)
    again = train([tomogram()], CLASSES, settings(), CPU, checkpoint=tmp_path, progress=_kill_at(1))
    assert again.curve == first.curve
    assert torch.equal(weights(again), weights(first))


def test_it_overfits_two_windows() -> None:
    plan = sasi_settings(
        {
            "architecture": "deepfinder",
            "init": "none",
            "window": 16,
            "labels": {"radius": 1.0},
            "augment": {"shift": 0, "rotation": "none", "flip": False},
            "infill": {"enabled": False},
            "consistency": {"enabled": False},
            "self_supervision": {"mode": "none"},
            "training": {"steps": 80, "batch": 2, "anywhere": 0, "held_out": 0, "precision": "fp32", "check_every": 20},
        }
    )
    two = tomogram(points=2)
    trained = train([two], CLASSES, plan, CPU)
    losses = [entry["supervised"] for entry in trained.curve]
    assert losses[0] > 8
    assert losses[-1] < 2  # of 20 for Dice
    z, y, x = two.labelled.points.zyx[1].astype(int)
    window = torch.from_numpy(two.volume[z - 7 : z + 9, y - 7 : y + 9, x - 7 : x + 9])[None, None]
    with torch.no_grad():
        assert int(trained.network(window)[0, :, 7, 7, 7].argmax()) == 2


def test_patience_ends_a_training_and_the_best_net_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([0.5, 0.3, 0.4, 0.6, 0.1])
    monkeypatch.setattr("copick_cryosam.sasi.training.held_out_loss", lambda network, windows: next(looks))
    plan = sasi_settings({"self_supervision": {"mode": "none"}}, settings(steps=20, check_every=1, patience=2))
    trained = train([tomogram()], CLASSES, plan, CPU)
    assert [entry["held_out"] for entry in trained.curve] == [0.5, 0.3, 0.4, 0.6]
    assert trained.stopped_early
    assert trained.best_step == 2


def test_numbers_that_are_none_are_an_error() -> None:
    broken = tomogram()
    broken.volume[...] = np.nan
    with pytest.raises(DataError, match="expected finite"):
        train([broken], CLASSES, settings(steps=20), CPU)


def test_a_tomogram_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"run run: expected at least 40 voxels .* found \(32, 40, 48\)"):
        train([tomogram()], CLASSES, sasi_settings({"window": 40}, settings()), CPU)
