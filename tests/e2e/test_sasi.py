"""`copick training sasi` and `copick inference sasi` on a project: trained, found, recorded, skipped, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from copick_cryosam.sasi import model as models
from copick_cryosam.sasi import networks, training
from copick_cryosam.sasi.networks import Network
from copick_cryosam.sasi.training import Trained

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = {"ribosome": 7, "gold": 300}
CURVE = [
    {"phase": "self-supervised", "step": 2, "contrastive": 2.5},
    {"phase": "supervised", "step": 4, "supervised": 9.0, "loss": 9.5, "held_out": 0.25},
    {"phase": "supervised", "step": 6, "supervised": 5.0, "loss": 5.5, "held_out": float("nan")},
]


class BallNet(Network):
    """Finds bright balls, and takes them for class 1; what it needs of training is nothing."""

    name, window, divisor, embedding = "deepfinder", 16, 2, 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.steepness = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        logit = self.steepness * (nn.functional.avg_pool3d(x, 5, 1, 2) - 1)
        others = torch.full_like(logit, -30.0).expand(-1, self.classes - 1, -1, -1, -1)
        return torch.cat([torch.zeros_like(logit), logit, others], dim=1)


class Quick:
    """Stands in for the training, and keeps what it was given."""

    tomograms: Any = None
    classes: Any = None

    def __call__(self, tomograms: Any, classes: Any, settings: Any, device: Any, **named: Any) -> Trained:
        self.tomograms, self.classes = tomograms, classes
        named["progress"]("train", 6, 6)
        net = networks.load_network(settings, len(classes))
        return Trained(network=net, curve=CURVE, best_step=2, stopped_early=False, held_out=[(0, 1)])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Quick:
    made = Quick()
    monkeypatch.setattr(training, "train", made)
    for module in (networks, models):
        monkeypatch.setattr(module, "load_network", lambda settings, classes: BallNet(classes))
    return made


@pytest.fixture
def project(ball_project: Any) -> Any:
    """Four balls of two tomograms are labelled as ribosomes, two as gold."""
    for each in ball_project.content["pickable_objects"]:
        each["label"] = LABELS[each["name"]]
    ball_project.write_config()
    for run in ("TS_001", "TS_002"):
        xyz = ball_project.truth[run][:, ::-1] * ball_project.spacing
        ball_project.add_picks(run, xyz[:4])
        ball_project.add_picks(run, xyz[4:6], name="gold")
    return ball_project


@pytest.fixture
def train(project: Any, copick_cli: Any) -> Callable[..., Any]:
    def call(*more: str, inputs: tuple[str, ...] = ("ribosome:curator/1", "gold:curator/1")) -> Any:
        words = ["-c", str(project.config), "-t", "wbp@10.0", "--device", "cpu", "-o", str(project.folder / "m")]
        return copick_cli("training", "sasi", *words, *(word for uri in inputs for word in ("-i", uri)), *more)

    return call


@pytest.fixture
def detect(project: Any, copick_cli: Any) -> Callable[..., Any]:
    def call(*more: str) -> Any:
        words = ["-c", str(project.config), "-t", "wbp@10.0", "--device", "cpu", "-m", str(project.folder / "m")]
        return copick_cli("inference", "sasi", *words, *more)

    return call


def picks(project: Any, run: str, name: str = "ribosome", user: str = "sasi", session: str = "1") -> Any:
    found = project.root().get_run(run).get_picks(name, user, session)
    return found[0].points if found else None


def test_from_points_to_picks_and_masks(project: Any, train: Any, detect: Any, quick: Quick) -> None:
    picture = project.folder / "curve.png"
    done = train("--curve", str(picture))
    assert done.exit_code == 0, done.output
    assert "TS_001: 4 ribosome, 2 gold" in done.output
    assert "Kept: step 4 of 6, Dice loss 0.250 on held-out points" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [(one.name, one.radius_vox) for one in quick.classes] == [("ribosome", 5.0), ("gold", 5.0)]
    assert [one.name for one in quick.tomograms] == ["TS_001", "TS_002"]
    for one in quick.tomograms:
        z, y, x = np.floor(one.labelled.points.zyx + 0.5).astype(int).T
        assert one.volume[z, y, x].mean() > 1  # the balls are dark in the project
        assert abs(one.volume.mean()) < 0.1
    record = json.loads((project.folder / "m.json").read_text(encoding="utf-8"))
    assert record["polarity"] == "dark"
    assert record["training"]["curve"][-1]["held_out"] is None
    points = record["training"]["points"]
    assert len(points) == 12
    first = points[0]
    assert first["position"] == pytest.approx(project.truth["TS_001"][0, ::-1] * 10, abs=1e-3)
    assert {key: first[key] for key in ("object", "run", "picks", "weight", "source")} == {
        "object": "ribosome",
        "run": "TS_001",
        "picks": "ribosome:curator/1",
        "weight": 1.0,
        "source": "human",
    }
    assert [point["held_out"] for point in points] == [False, True] + 10 * [False]

    found = detect()
    assert found.exit_code == 0, found.output
    assert "3 done, 0 skipped, 0 failed" in found.output
    for run, truth in project.truth.items():
        some = picks(project, run)
        where = np.array([[p.location.z, p.location.y, p.location.x] for p in some]) / project.spacing
        assert np.linalg.norm(where[:, None] - truth, axis=2).min(axis=0).max() < 2
        assert len(some) == len(truth)
        scores = [p.score for p in some]
        assert scores == sorted(scores, reverse=True)
        assert 0.5 < scores[-1] <= scores[0] <= 1
        assert picks(project, run, "gold") == []
    (masks,) = project.root().get_run("TS_001").get_segmentations(name="sasi", user_id="sasi", is_multilabel=True)
    values = masks.numpy()
    assert values.shape == project.shape
    assert values.dtype == np.uint16
    assert set(np.unique(values)) == {0, LABELS["ribosome"]}
    z, y, x = np.floor(project.truth["TS_001"] + 0.5).astype(int).T
    assert (values[z, y, x] == LABELS["ribosome"]).all()

    before = project.listing()
    again = detect()
    assert again.exit_code == 0
    assert "0 done, 3 skipped, 0 failed" in again.output
    other = detect("--min-score", "0.99")
    assert other.exit_code == 0
    assert "Warning: made with other inputs or settings" in other.output
    assert project.listing() == before
    assert detect("-r", "TS_001", "--min-score", "1", "--overwrite").exit_code == 0
    assert picks(project, "TS_001") == []
    assert project.listing("static") == {k: v for k, v in before.items() if k.startswith("static/")}

    elsewhere = detect("-r", "TS_002", "-o", "me/2", "-os", "all:you/3")
    assert elsewhere.exit_code == 0, elsewhere.output
    assert len(picks(project, "TS_002", user="me", session="2")) == 6
    assert project.root().get_run("TS_002").get_segmentations(name="all", user_id="you", session_id="3")


def test_a_failed_run_is_told_and_the_others_are_done(project: Any, train: Any, detect: Any, quick: Quick) -> None:
    assert train().exit_code == 0
    volume = np.random.default_rng(5).normal(size=project.shape)
    volume[3, 4, 5] = np.nan
    project.add_tomogram("TS_002", volume)
    done = detect()
    assert done.exit_code == 1
    assert "Error: TS_002 failed: run TS_002, tomogram wbp@10.0: expected finite values" in done.output
    assert "2 done, 0 skipped, 1 failed" in done.output
    retry = next(line for line in done.output.splitlines() if line.startswith("Retry"))
    assert "copick inference sasi" in retry
    assert "-r TS_002 " in retry
    assert picks(project, "TS_002") is None
    project.add_tomogram("TS_002", np.random.default_rng(5).normal(size=project.shape))
    assert "1 done, 2 skipped, 0 failed" in detect().output
    # what was deleted in a viewer is made again
    project.root().get_run("TS_003").get_picks("gold", "sasi", "1")[0].delete()
    assert "1 done, 2 skipped, 0 failed" in detect().output


def test_a_killed_training_goes_on(project: Any, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "quick.yaml").write_text(
        "window: 16\ntraining: {batch: 2, check_every: 2}\nself_supervision: {mode: none}\n", encoding="utf-8"
    )
    settings = ("--settings", str(project.folder / "quick.yaml"), "--steps", "4")
    whole = training._Training._check

    def killed(self: Any) -> None:
        whole(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training._Training, "_check", killed)
        assert train(*settings).exit_code != 0
    left = project.folder / "m.training"
    assert left.is_dir()
    assert not (project.folder / "m.json").exists()
    before = project.listing()
    project.refused(train(*settings, "--seed", "3"), "found one of other settings", before)
    steps = []
    learn = training._Training._learn_from_labels
    monkeypatch.setattr(
        training._Training, "_learn_from_labels", lambda self, done: (steps.append(done), learn(self, done))
    )
    done = train(*settings)
    assert done.exit_code == 0, done.output
    assert steps == [2, 3]
    assert not left.exists()
    assert [row["step"] for row in models.read_record(project.folder / "m").training["curve"]] == [2, 4]


def test_dry_runs_write_nothing(project: Any, train: Any, detect: Any, quick: Quick) -> None:
    before = project.listing()
    planned = train("--dry-run", "--shots", "3")
    assert planned.exit_code == 0, planned.output
    assert "Nothing was written" in planned.output
    assert project.listing() == before
    assert train().exit_code == 0
    before = project.listing()
    planned = detect("--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "TS_003: 40 x 64 x 72 voxels" in planned.output
    assert project.listing() == before


def scored(project: Any, scores: list[float]) -> None:
    """Picks of a program on the first balls of TS_003."""
    found = project.static_root().get_run("TS_003").new_picks("ribosome", "1", "cryosam")
    found.from_numpy(project.truth["TS_003"][: len(scores), ::-1] * 10, scores=np.array(scores))


def test_pseudo_labels_beside_points(project: Any, train: Any, quick: Quick) -> None:
    scored(project, [0.95, 0.2, 0.91])
    done = train("--pseudo", "ribosome:cryosam/1", "--shots", "3", "--seed", "2")
    assert done.exit_code == 0, done.output
    assert "TS_003: no points; pseudo-labels: 2 ribosome" in done.output
    points = models.read_record(project.folder / "m").training["points"]
    assert [(p["picks"], p["weight"]) for p in points if p["source"] == "pseudo"] == [
        ("ribosome:cryosam/1", 0.95),
        ("ribosome:cryosam/1", 0.91),
    ]
    assert sum(p["source"] == "human" for p in points) == 6


def test_a_run_whose_pseudo_labels_all_score_1_is_used(project: Any, train: Any, quick: Quick) -> None:
    # where CryoSAM keeps its seeds alone, which are right whatever they look like
    scored(project, [0.95, 0.2, 0.91])
    found = project.static_root().get_run("TS_002").new_picks("ribosome", "1", "cryosam")
    found.from_numpy(project.truth["TS_002"][:4, ::-1] * 10, scores=np.ones(4))
    done = train("--pseudo", "ribosome:cryosam/1", "--shots", "1")
    assert done.exit_code == 0, done.output
    points = models.read_record(project.folder / "m").training["points"]
    assert {p["run"] for p in points if p["source"] == "pseudo"} == {"TS_002", "TS_003"}
    assert max(p["weight"] for p in points if p["source"] == "pseudo") < 1


def other_spacing(project: Any) -> None:
    project.add_tomogram("TS_002", np.random.default_rng(0).normal(size=project.shape), spacing=20.0)
    (project.folder / "static/ExperimentRuns/TS_002/VoxelSpacing10.000").rename(project.folder / "gone")


Change = Callable[[Any], object]
TRAINING: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "no points": (lambda p: None, ("-i", "gold:nobody/1"), "Picks of gold are gold:curator/1"),
    "no points in this run": (lambda p: None, ("-r", "TS_003"), "expected points at ribosome:curator/1, found none"),
    "too few points": (lambda p: None, ("--shots", "5"), "gold: expected at least 5 points, found 4"),
    "unknown object": (
        lambda p: None,
        ("-i", "virus:me/1"),
        "expected a pickable object of the project, found 'virus'",
    ),
    "unknown run": (lambda p: None, ("-r", "TS_9"), "found 'TS_9'"),
    "points outside": (
        lambda p: p.add_picks("TS_002", [[10.0, 10.0, 1e5]], name="gold"),
        (),
        "run TS_002: expected points of gold inside",
    ),
    "two voxel spacings": (other_spacing, ("-t", "wbp"), "run TS_002: expected the voxel spacing 10.0 of run TS_001"),
    "window too large": (
        lambda p: (p.folder / "w.yaml").write_text("window: 48\n"),
        ("--settings", "w.yaml"),
        "run TS_001: expected at least 48 voxels along each axis",
    ),
    "small volume": (
        lambda p: p.add_tomogram("TS_003", np.random.default_rng(0).normal(size=(16, 64, 72))),
        ("-r", "TS_001", "-r", "TS_003"),
        "run TS_003: expected at least 32 voxels along each axis",
    ),
    "NaN": (
        lambda p: p.add_tomogram("TS_002", np.full(p.shape, np.nan)),
        (),
        "run TS_002, tomogram wbp@10.0: expected finite values",
    ),
    "contradicting runs": (
        lambda p: p.add_tomogram("TS_002", -p.root().get_run("TS_002").get_voxel_spacing(10.0).tomograms[0].numpy()),
        (),
        "found dark in TS_001; light in TS_002. Leave runs out with -r",
    ),
    "wrong polarity": (lambda p: None, ("--polarity", "light"), "Use --polarity dark"),
    "model exists": (lambda p: (p.folder / "m.json").write_text("{}"), (), "expected no file yet, found one"),
    "no such folder": (lambda p: None, ("-o", "/nowhere/at/all"), "Create the folder first"),
    "pseudo-labels without points": (lambda p: None, ("--pseudo", "virus:me/1"), "expected an object that has points"),
    "pseudo-labels without scores": (
        lambda p: p.add_picks("TS_003", [[100.0, 100.0, 100.0]], user="me"),
        ("--pseudo", "ribosome:me/1"),
        "expected scores that are expected precisions, 0 to 1, found none",
    ),
    "points of a program": (lambda p: scored(p, [0.5, 0.6]), ("-i", "ribosome"), "ribosome:cryosam/1"),
    "impossible precision": (lambda p: None, ("--min-precision", "0"), "--min-precision: expected more than 0"),
    "malformed": (lambda p: None, ("-i", "rib osome:x/1"), "input URI"),
    "impossible steps": (lambda p: None, ("--steps", "0"), "training.steps"),
    "init of another net": (lambda p: None, ("--init", "embednet", "--architecture", "deepfinder"), "init embednet"),
    "no settings": (lambda p: None, ("--settings", "/nowhere.yaml"), "settings file"),
    "no picture": (lambda p: None, ("--curve", "curve.gif"), "curve curve.gif"),
    "no folder for the picture": (lambda p: None, ("--curve", "/nowhere/curve.png"), "an existing folder"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training_refused(project: Any, train: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    change, arguments, words = TRAINING[case]
    change(project)
    before = project.listing()
    project.refused(train(*arguments), words, before)


def test_no_gpu(project: Any, train: Any, detect: Any, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = project.listing()
    project.refused(train("--device", "cuda"), "device: expected cuda", before)
    assert train().exit_code == 0
    before = project.listing()
    project.refused(detect("--device", "cuda"), "device: expected cuda", before)


def rename_object(project: Any) -> None:
    first, *others = project.content["pickable_objects"]
    project.write_config(pickable_objects=[first, *({**each, "name": "silver"} for each in others)])


def write_foreign(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)


def blocked_overlay(project: Any) -> None:
    # A folder below a file can be made by nobody, root included.
    (project.folder / "file").write_text("", encoding="utf-8")
    project.write_config(overlay_root=f"local://{project.folder}/file/overlay")


INFERENCE: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "no model": (lambda p: (p.folder / "m.safetensors").unlink(), (), "Train one with copick training sasi"),
    "foreign model": (lambda p: write_foreign(p.folder / "m.safetensors"), (), "tensors of another program"),
    "cut model": (lambda p: (p.folder / "m.safetensors").write_bytes(b"12"), (), "a damaged or foreign file"),
    "object missing": (rename_object, (), "found 'gold'. Its objects are ribosome, gold"),
    "wrong spacing": (lambda p: None, ("-t", "wbp@20.0"), "voxel spacing: expected 10 Å"),
    "wrong type": (lambda p: None, ("-t", "other@10.0", "-r", "TS_001"), "found wbp@10.0"),
    "unknown run": (lambda p: None, ("-r", "TS_9"), "found 'TS_9'"),
    "read-only overlay": (blocked_overlay, (), "overlay_root"),
    "output exists": (
        lambda p: p.add_picks("TS_002", [[1.0, 2.0, 3.0]], name="gold", user="sasi"),
        (),
        "found picks gold:sasi/1 in the read-only part of the project. Write to another session with -o user/session",
    ),
    "an object in the output": (lambda p: None, ("-o", "gold:me/1"), "output: expected user/session"),
    "malformed output": (lambda p: None, ("-o", "a_b/1"), "output"),
    "instance masks": (lambda p: None, ("-os", "sasi?instance=true"), "?multilabel=true"),
    "masks of another spacing": (lambda p: None, ("-os", "sasi:sasi/1@20"), "leave the spacing out"),
    "impossible score": (lambda p: None, ("--min-score", "2"), "inference.min_score"),
    "impossible batch": (lambda p: None, ("--batch", "0"), "inference.batch"),
}


def test_inference_refused(project: Any, train: Any, detect: Any, quick: Quick, tmp_path: Path) -> None:
    assert train().exit_code == 0
    kept = {path: path.read_bytes() for path in project.folder.glob("m.*")}
    for case, (change, arguments, words) in INFERENCE.items():
        for path, content in kept.items():
            path.write_bytes(content)
        project.write_config()
        change(project)
        before = project.listing()
        try:
            project.refused(detect(*arguments), words, before)
        except AssertionError as error:
            raise AssertionError(case) from error
        picked = project.folder / "static/ExperimentRuns/TS_002/Picks/sasi_1_gold.json"
        picked.unlink(missing_ok=True)


def test_tomograms_of_another_spacing_fail(project: Any, train: Any, detect: Any, quick: Quick) -> None:
    assert train().exit_code == 0
    other_spacing(project)
    done = detect("-t", "wbp")
    assert done.exit_code == 1
    assert "Error: TS_002 failed: run TS_002: voxel spacing: expected 10 Å" in done.output
    assert "2 done, 0 skipped, 1 failed" in done.output
