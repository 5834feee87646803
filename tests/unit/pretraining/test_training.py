"""Both trainings on one tiny sample: they learn, write checkpoints, and go on from them as if never interrupted."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from copick_cryosam.encoders.embednet import EmbedNet
from copick_cryosam.pretraining import loop, train_embednet, train_promptnet
from copick_cryosam.pretraining.export import export
from copick_cryosam.pretraining.imaging import Imaging
from copick_cryosam.pretraining.pool import Sample, load_sample, sample_paths, save_sample
from copick_cryosam.pretraining.shapes import random_shape
from copick_cryosam.pretraining.simulate import MARGIN, Scene, build, crop_truth, tomogram_of
from copick_cryosam.segmenters.promptnet import PIXELS, PromptNet

TRAININGS = {"embednet": train_embednet, "promptnet": train_promptnet}


def tiny_sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    shapes = [random_shape(rng, family="globule", radius=5.0), random_shape(rng, family="barrel", radius=6.0)]
    parts = []
    for _ in range(2):
        specimen = build(Scene(shape_zyx=(32, 48, 48), counts=(4, 4), membranes=1), shapes, rng)
        labels, clutter, _ = crop_truth(specimen)
        volume = tomogram_of(specimen, Imaging(snr=0.5, tilt_step=6), rng)
        centres = specimen.centres_zyx - np.array([0, 0, MARGIN])
        parts.append((volume, labels, clutter, specimen.kinds, centres, specimen.radii))
    return Sample(
        volumes=np.stack([p[0] for p in parts]),
        labels=np.stack([p[1] for p in parts]),
        clutter=np.stack([p[2] for p in parts]),
        kinds=tuple(p[3] for p in parts),
        centres=tuple(p[4] for p in parts),
        radii=tuple(p[5] for p in parts),
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for index in range(2):
        save_sample(tiny_sample(index), folder / f"sample-{index:05d}.npz")
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Few prompts, and the number of threads as it was."""
    monkeypatch.setattr(train_promptnet, "PROMPTS", 2)
    monkeypatch.setattr(train_promptnet, "ROLLOUT", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(pool: Path, out: Path, steps: int = 2) -> Namespace:
    return Namespace(
        pool=[pool],
        out=out,
        init=None,
        steps=steps,
        rate=2e-3,
        heads_weight=2.0,
        whole_weight=0.5,
        moving=0.5,
        seed=3,
        threads=1,
        bf16=False,
    )


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(name, pool, tmp_path, monkeypatch):
    training = TRAININGS[name]
    training.train(arguments(pool, tmp_path / "whole"))
    whole = checkpoint(tmp_path / "whole")
    assert whole["step"] == 2

    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 1)
    loads = []

    def stops_at_the_second(path):
        loads.append(path)
        if len(loads) == 2:
            raise KeyboardInterrupt
        return load_sample(path)

    monkeypatch.setattr(loop, "load_sample", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        training.train(arguments(pool, tmp_path / "broken"))
    assert checkpoint(tmp_path / "broken")["step"] == 1
    monkeypatch.setattr(loop, "load_sample", load_sample)
    training.train(arguments(pool, tmp_path / "broken"))
    resumed = checkpoint(tmp_path / "broken")

    assert resumed["step"] == 2
    for part in ("net", "average"):
        assert whole[part].keys() == resumed[part].keys()
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), (part, key)
    assert not list((tmp_path / "broken").glob("*.partial"))


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_a_training_can_start_from_averaged_weights(name, pool, tmp_path):
    training = TRAININGS[name]
    training.train(arguments(pool, tmp_path / "first"))
    further = arguments(pool, tmp_path / "further", steps=1)
    further.init, further.rate = tmp_path / "first" / "checkpoint.pt", 0.0
    training.train(further)
    for (key, before), after in zip(
        checkpoint(tmp_path / "first")["average"].items(), checkpoint(tmp_path / "further")["net"].values(), strict=True
    ):
        if "running_" not in key and "num_batches" not in key:
            assert torch.equal(before, after), key


def test_a_training_can_start_from_weights_as_they_ship(pool, tmp_path):
    train_embednet.train(arguments(pool, tmp_path / "first", steps=1))
    export([tmp_path / "first" / "checkpoint.pt"], tmp_path / "net.safetensors")
    further = arguments(pool, tmp_path / "further", steps=1)
    further.init, further.rate = tmp_path / "net.safetensors", 0.0
    train_embednet.train(further)
    stored, after = load_file(tmp_path / "net.safetensors"), checkpoint(tmp_path / "further")["net"]
    for key, value in stored.items():
        if "running_" not in key and "num_batches" not in key:
            assert torch.equal(value.float(), after[key]), key


@pytest.mark.parametrize(("moving", "changed"), [(0.0, False), (1.0, True)])
def test_batch_statistics_are_learned_in_the_share_of_the_steps_asked_for(moving, changed, pool, tmp_path):
    wanted = arguments(pool, tmp_path, steps=1)
    wanted.moving = moving
    train_embednet.train(wanted)
    means = [value for key, value in checkpoint(tmp_path)["net"].items() if key.endswith("running_mean")]
    assert any(bool(value.any()) for value in means) == changed


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_a_finished_training_changes_nothing_when_started_again(name, pool, tmp_path):
    training = TRAININGS[name]
    training.train(arguments(pool, tmp_path, steps=1))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    training.train(arguments(pool, tmp_path, steps=1))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(("name", "net"), [("embednet", EmbedNet), ("promptnet", PromptNet)])
def test_a_checkpoint_is_exported_as_the_package_loads_it(name, net, pool, tmp_path):
    TRAININGS[name].train(arguments(pool, tmp_path, steps=1))
    export([tmp_path / "checkpoint.pt"], tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors")
    average = checkpoint(tmp_path)["average"]
    assert stored.keys() == average.keys()
    for key, value in stored.items():
        assert value.dtype == (torch.float16 if average[key].dtype.is_floating_point else average[key].dtype)
        torch.testing.assert_close(value.float(), average[key].float(), rtol=1e-3, atol=1e-6)
    loaded = {key: value.float() if value.dtype == torch.float16 else value for key, value in stored.items()}
    net().load_state_dict(loaded)


def test_checkpoints_are_averaged(tmp_path):
    for value in (1.0, 4.0):
        state = {"weight": torch.full((2, 3), value), "count": torch.tensor(int(value))}
        torch.save({"average": state}, tmp_path / f"{value:.0f}.pt")
    export([tmp_path / "1.pt", tmp_path / "4.pt"], tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors")
    assert torch.equal(stored["weight"], torch.full((2, 3), 2.5, dtype=torch.float16))
    assert stored["count"] == 1


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_the_curve_has_a_row_for_every_50_steps(name, pool, tmp_path):
    """Rows are added to those of the training that was interrupted."""
    training = TRAININGS[name]
    training.train(arguments(pool, tmp_path, steps=1))
    assert not (tmp_path / "curve.csv").exists()
    (tmp_path / "curve.csv").write_text("0,earlier\n", encoding="utf-8")
    torch.save(checkpoint(tmp_path) | {"step": 49}, tmp_path / "checkpoint.pt")
    training.train(arguments(pool, tmp_path, steps=51))
    with (tmp_path / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["0", "50"]
    assert np.isfinite(np.array(rows[1], dtype=float)).all()


# --- what the steps are made of -----------------------------------------------------------------


def test_samples_come_back_as_they_were_saved(tmp_path):
    sample = tiny_sample(5)
    save_sample(sample, tmp_path / "sample-00000.npz")
    (tmp_path / "sample-00001.npz.partial.npz").write_bytes(b"half written")
    (path,) = sample_paths(tmp_path)
    back = load_sample(path)
    np.testing.assert_allclose(back.volumes, sample.volumes, atol=4e-3)
    np.testing.assert_array_equal(back.labels, sample.labels)
    np.testing.assert_array_equal(back.clutter, sample.clutter)
    for name in ("kinds", "centres", "radii"):
        for one, other in zip(getattr(back, name), getattr(sample, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_flips_and_crops_move_volume_and_truth_alike():
    """A volume that is its own labels must stay so, and centres must lie on the labels they belong to."""
    sample = tiny_sample(1)
    copy = Sample(
        volumes=(sample.labels > 0).astype(np.float32),
        labels=sample.labels,
        clutter=sample.clutter,
        kinds=sample.kinds,
        centres=sample.centres,
        radii=sample.radii,
    )
    peaks_seen = 0
    for seed in range(8):
        batch = train_embednet.prepare(copy, np.random.default_rng(seed), (24, 32, 32))
        assert batch.volumes.shape == (2, 1, 24, 32, 32)
        assert batch.labels.shape == batch.centre.shape == batch.foreground.shape == (2, 12, 16, 16)
        inside = torch.nn.functional.avg_pool3d((batch.volumes > 0).float(), 2)[:, 0]
        assert torch.equal(inside, batch.foreground)
        assert (batch.foreground[batch.labels > 0] >= 0.5).all()
        peaks = batch.centre > 0.75
        assert (batch.foreground[peaks] > 0.3).all()
        peaks_seen += int(peaks.sum())
        for t in range(2):
            assert int(batch.labels[t].max()) < len(batch.kinds[t])
            assert batch.kinds[t][1:].tolist() == sample.kinds[t].tolist()
    assert peaks_seen > 8


@pytest.mark.parametrize(
    ("shape", "crop"),
    [((48, 128, 128), (48, 96, 96)), ((64, 160, 160), (64, 112, 112)), ((75, 201, 149), (64, 144, 96))],
)
def test_crops_are_of_whole_coarse_cells_and_leave_room_to_move(shape, crop):
    assert train_embednet.crop_of(shape) == crop


def test_pools_are_taken_in_turn(pool, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    save_sample(tiny_sample(7), other / "sample-00007.npz")
    seen = []

    def noted(path):
        seen.append(path.parent)
        return load_sample(path)

    monkeypatch.setattr(loop, "load_sample", noted)
    wanted = arguments(pool, tmp_path / "out", steps=4)
    wanted.pool = [pool, other]
    train_embednet.train(wanted)
    assert seen == [pool, other, pool, other]


def test_heat_peaks_at_every_centre():
    centres, radii = np.array([[4.0, 10.0, 11.0], [15.2, 3.7, 8.0], [-40.0, 0.0, 0.0]]), np.array([5.0, 8.0, 5.0])
    heat = train_embednet.centre_heat(centres, radii, (20, 21, 22))
    assert heat[4, 10, 11] == 1
    assert heat[15, 4, 8] > 0.95
    assert heat[0, 20, 0] == 0
    assert heat[4, 10, 11 + 4] == pytest.approx(np.exp(-16 / (2 * 1.75**2)), abs=1e-5)


def test_the_contrastive_loss_is_low_only_where_kinds_agree():
    batch = train_embednet.prepare(tiny_sample(2), np.random.default_rng(0), (32, 48, 48))
    basis = torch.eye(8)
    kinds = [batch.kinds[t][batch.labels[t]] for t in range(2)]
    ideal = torch.stack([basis[kind + 1].movedim(-1, 0) for kind in kinds])  # a feature for each kind, and one for none
    alike = torch.stack([basis[torch.zeros_like(kind)].movedim(-1, 0) for kind in kinds])
    losses = [train_embednet.contrastive_loss(e, batch, torch.Generator().manual_seed(0)) for e in (ideal, alike)]
    for good, bad in zip(*losses, strict=True):
        assert float(good) < float(bad) - 0.5
    assert float(losses[0][0]) < float(losses[1][0]) - 1
    perfect = float(
        train_embednet.map_loss(torch.stack([batch.foreground, batch.centre], 1).clamp(1e-4, 1 - 1e-4).logit(), batch)
    )
    assert perfect < float(train_embednet.map_loss(torch.zeros(2, 2, *batch.labels.shape[1:]), batch))


def test_true_masks_are_cut_where_the_prompt_looks():
    labels = torch.zeros(9, 60, 60, dtype=torch.int64)
    labels[4, 20:30, 35:45] = 7
    masks = train_promptnet.truth_of(
        labels,
        torch.tensor([4, 4, 3, -1]),
        torch.tensor([[1, 16], [1, 16], [1, 16], [1, 16]]),
        48,
        torch.tensor([7, 6, 7, 7]),
    )
    assert masks.shape == (4, PIXELS, PIXELS)
    assert torch.equal(masks[0], torch.nn.functional.pad(labels[4, 1:49, 16:60].eq(7), (0, 4)))
    assert not masks[1:].any()


def test_the_loss_of_a_plane_prefers_the_truth():
    truth = torch.zeros(2, PIXELS, PIXELS, dtype=torch.bool)
    truth[0, 10:30, 12:30] = True
    signs = truth.float() * 12 - 6
    sure = torch.tensor([6.0, -6.0])
    good, iou = train_promptnet.plane_loss((signs, sure, sure), truth)
    bad, other = train_promptnet.plane_loss((-signs, sure, -sure), truth)
    assert float(good) < 0.05 < 1 < float(bad)
    assert iou[0] == 1
    assert other[0] == 0


@pytest.mark.parametrize(("direction", "half"), [(1, 1), (1, 2), (-1, 1), (-1, 2)])
def test_a_roll_out_meets_the_planes_that_the_net_sees(direction, half):
    """A net that reads the truth off its pictures is right on every plane of every slab, in either direction."""
    labels = torch.zeros(40, 60, 60, dtype=torch.int64)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in labels.shape), indexing="ij")).float()
    centre = torch.tensor([20.0, 31.0, 28.0])
    labels[((grid - centre[:, None, None, None]) ** 2).sum(0) <= 14**2] = 3
    prompts: list[torch.Tensor] = []

    def reads(x):
        prompts.append(x[:, -2:])
        sure = torch.full((len(x), 5), 6.0)
        return (x[:, 1:6] - 0.5) * 12, sure, sure

    start = train_promptnet.Start(
        planes=torch.tensor([20 + direction]),
        clicks=torch.tensor([[31.0, 28.0]]),
        windows=torch.tensor([[7, 4]]),
        labels=torch.tensor([3]),
        direction=torch.tensor([direction]),
        previous=torch.zeros(1, PIXELS, PIXELS),
        followed=torch.tensor([False]),
        half=half,
    )
    _, scores = train_promptnet.follow(reads, (labels == 3).float()[None, None], labels, start, PIXELS, bf16=False)
    assert scores.tolist() == [1.0, 1.0]
    first, second = prompts
    assert not first.any()
    # the second slab is prompted with the first one's last plane, and told how far that is
    last = labels[20 + direction * (1 + half), 7:55, 4:52] == 3
    assert torch.equal(second[0, 0] > 0, last)
    assert second[0, 1].unique().tolist() == [(half + 1) / 4]


def test_the_learning_rate_warms_up_and_falls():
    rates = [loop.learning_rate(step, 1000, 1e-3) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)
