"""`--preset foundation` and `--preset paper` from files to results, with random weights in the official formats.

SAM is a whole ViT-B and DINOv2 a tiny one with registers. Random masks mean nothing, but everything else is real:
formats, commands, stop rules, thresholds and records. The presets' own rules stay; only sizes are small, and `paper`
keeps planes at their own aspect, as its squares always have 1024 x 1024 pixels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy import ndimage

from copick_cryosam import CryoSAM, pipeline
from copick_cryosam import instances as selection
from copick_cryosam.config import override, preset
from copick_cryosam.errors import NotFoundError
from copick_cryosam.foundation.catalogue import SAMS, VARIABLE
from copick_cryosam.segmenters import cross_plane
from copick_cryosam.segmenters.fusing import CrossPlaneMask
from copick_cryosam.types import Instance

SEED = 3
"""Of SAM's weights: one whose masks are neither empty nor all that a walk can hold, so that stop rules decide."""
SPACING = 20.0
RADIUS = 3
"""Voxels; 60 Å, the radius of `ribosome` in the project."""
SHAPE = (16, 24, 30)
BALLS = ((8, 6, 6), (8, 17, 8), (7, 8, 22), (8, 18, 23))
SMALL: dict[str, dict[str, dict[str, object]]] = {
    "foundation": {"segmenter": {"longest_side": 128, "extent": 0.7}, "encoder": {"longest_side": 112}},
    "paper": {
        "segmenter": {"longest_side": 128, "extent": 0.7, "padding": "native", "model": "vit_b"},
        "encoder": {"longest_side": 140},
    },
}
"""What is changed for speed."""
FACES = ndimage.generate_binary_structure(3, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "COPICK_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def sam_file(official_sam: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ViT-B as the official checkpoints are, 375 MB."""
    # Not from the cache of `random_sam`, which would hold it to the end of the session.
    sam = official_sam.random_sam.__wrapped__(1024, seed=SEED, **official_sam.VIT_B)
    path = tmp_path_factory.mktemp("sam") / "random_vit_b.pth"
    torch.save(sam.state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def encoder_folder(tiny_transformers: dict[str, Path]) -> Path:
    """A tiny DINOv2 with registers as transformers saves it."""
    return tiny_transformers["dinov2_with_registers"]


@pytest.fixture
def checkpoints(sam_file: Path, encoder_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder for CRYOSAM_CHECKPOINTS that holds the same models under the names that are looked for."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(encoder_folder, folder / "dinov2-reg-large")
    path = folder / Path(SAMS["vit_b"].file).with_suffix(".safetensors")
    save_file(torch.load(sam_file, weights_only=True, mmap=True), path)
    yield folder
    path.unlink()


def noisy_balls() -> NDArray[np.float32]:
    """Dark balls in noise."""
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    z, y, x = np.indices(SHAPE)
    for centre in BALLS:
        volume[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= RADIUS**2] -= 3
    return volume


class Picking:
    """A project with one tomogram and one seed, and the `copick` command on it."""

    def __init__(self, project: Any, command: Any, name: str) -> None:
        self.project, self.command, self.name = project, command, name
        project.add_tomogram("TS_001", noisy_balls(), spacing=SPACING)
        project.add_picks("TS_001", np.array([BALLS[0][::-1]]) * SPACING)
        self.settings = project.folder / "small.yaml"
        self.settings.write_text(yaml.safe_dump(SMALL[name]), encoding="utf-8")

    def __call__(self, *more: str) -> Result:
        words = ("-c", self.project.config, "-t", "wbp@20.0", "-i", "ribosome:curator/1", "--preset", self.name)
        more = ("--settings", str(self.settings), "--device", "cpu", *more)
        result: Result = self.command("inference", "cryosam", *map(str, words), *more)
        return result

    def record(self) -> dict[str, Any]:
        """The completion record."""
        path = self.project.overlay / "ExperimentRuns/TS_001/CryoSAM/cryosam_1_ribosome.json"
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def results(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
        """Picks in voxels z, y, x, their scores, and the instance labels, after a look at the binary mask."""
        run = self.project.root().get_run("TS_001")
        (picks,) = run.get_picks("ribosome", "cryosam", "1")
        (labels,) = run.get_segmentations(user_id="cryosam", is_instance=True)
        (binary,) = run.get_segmentations(user_id="cryosam")
        np.testing.assert_array_equal(binary.numpy(), labels.numpy() > 0)
        return picks.full_positions().reshape(-1, 3)[:, ::-1] / SPACING, picks.scores(), labels.numpy()


def digits(path: Path) -> str:
    """The part of a file's SHA-256 that stands in signatures."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_foundation(project_on_disk: Any, copick_cli: Any, sam_file: Path, encoder_folder: Path) -> None:
    pick = Picking(project_on_disk, copick_cli, "foundation")
    models = ("--sam-checkpoint", str(sam_file), "--encoder", str(encoder_folder))

    before = project_on_disk.files()
    planned = pick(*models, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"Models: encoder {encoder_folder} from {encoder_folder}; segmenter SAM vit_b from {sam_file}; on cpu" in (
        planned.output
    )
    assert project_on_disk.files() == before

    done = pick(*models)
    assert done.exit_code == 0, done.output
    assert "1 done, 0 skipped, 0 failed" in done.output
    points, scores, labels = pick.results()
    assert labels.shape == SHAPE
    assert len(points) > 1
    assert set(np.unique(labels)) - {0} <= set(range(1, len(points) + 1))
    record = pick.record()
    assert record["counts"] == {"picks": len(points)}
    assert record["parameters"]["models"] == {
        "encoder": f"{encoder_folder.name}-{digits(encoder_folder / 'model.safetensors')}",
        "segmenter": f"sam-vit_b-{digits(sam_file)}",
    }
    assert record["parameters"]["settings"]["preset"] == "foundation"
    assert record["parameters"]["result"]["polarity"] == "dark"

    before = project_on_disk.files()
    again = pick(*models)
    assert again.exit_code == 0, again.output
    assert "0 done, 1 skipped, 0 failed" in again.output
    assert "Warning" not in again.output
    assert project_on_disk.files() == before

    # Arrays and the Python interface give what the command wrote.
    values = {"encoder": {"name": str(encoder_folder)}, "segmenter": {"checkpoint": str(sam_file)}, "device": "cpu"}
    model = CryoSAM.from_settings(override(override(preset("foundation"), SMALL["foundation"]), values))
    found = model.pick(noisy_balls(), [BALLS[0]], RADIUS, voxel_spacing=SPACING)
    np.testing.assert_allclose([one.centroid_zyx for one in found], points, atol=1e-4)
    np.testing.assert_allclose([one.score for one in found], scores, atol=1e-5)


class Segmented:
    """What cross-plane segmentation fused and what it made of it, and what picks were selected from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fused: list[tuple[NDArray[np.bool_], CrossPlaneMask]] = []
        self.candidates: list[list[Instance]] = []
        self.picks: list[list[Instance]] = []
        combine, select = cross_plane.combine, selection.select

        def combining(stacks: Any, index: int, *rest: Any) -> CrossPlaneMask:
            _, _, half, _ = rest
            edge = 2 * half + 1
            cubes = [np.unpackbits(one.bits[index], count=edge**3).reshape(edge, edge, edge) for one in stacks]
            mask = combine(stacks, index, *rest)
            self.fused.append((np.stack(cubes).astype(bool), mask))
            return mask

        def selecting(instances: list[Instance], *rest: Any) -> list[Instance]:
            self.candidates.append(instances)
            self.picks.append(select(instances, *rest))
            return self.picks[-1]

        monkeypatch.setattr(cross_plane, "combine", combining)
        monkeypatch.setattr(selection, "select", selecting)


def component_sizes(cube: NDArray[np.bool_]) -> set[int]:
    """Voxels of each connected component."""
    labels, count = ndimage.label(cube, FACES)
    return set(np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist())


def distinct(instances: list[Instance]) -> int:
    """How many are left when each that lies within a radius of a better one is taken away."""
    kept: list[Instance] = []
    for one in sorted((each for each in instances if each.size), key=lambda each: -each.score):
        gaps = [np.linalg.norm(np.subtract(one.centroid_zyx, other.centroid_zyx)) for other in kept]
        if all(gap >= RADIUS for gap in gaps):
            kept.append(one)
    return len(kept)


def test_paper(project_on_disk: Any, copick_cli: Any, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(checkpoints))
    pick = Picking(project_on_disk, copick_cli, "paper")
    sam, encoder = checkpoints / "sam_vit_b_01ec64.safetensors", checkpoints / "dinov2-reg-large"
    planned = pick("--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"Models: encoder dinov2-reg-large from {encoder}; segmenter SAM vit_b from {sam}; on cpu" in planned.output

    seen = Segmented(monkeypatch)
    done = pick()
    assert done.exit_code == 0, done.output
    points, scores, labels = pick.results()
    parameters, counts = pick.record()["parameters"], pick.record()["counts"]
    assert parameters["models"] == {
        "encoder": f"dinov2-reg-large-{digits(encoder / 'model.safetensors')}",
        "segmenter": f"sam-vit_b-{digits(sam)}",
    }

    # The mask is the prompted part of the union of the three axes, and more than two of them agree on.
    assert all(mask.mask.sum() in component_sizes(cubes.any(0)) for cubes, mask in seen.fused)
    assert any((cubes.sum(0) >= 2).sum() < mask.mask.sum() for cubes, mask in seen.fused)
    # Every proposal is segmented, also one that calibration would leave out (there are fewer than K), and every
    # mask among them is a pick unless a better one lies there.
    (candidates,) = seen.candidates
    assert len(candidates) == parameters["result"]["proposals"] < parameters["settings"]["matching"]["max_proposals"]
    assert min(one.expected_precision for one in candidates) < 0.5
    assert counts["picks"] == len(points) == distinct(candidates) > 1
    # A pick's score is its similarity x the confidence in its mask.
    (chosen,) = seen.picks
    np.testing.assert_allclose(scores, [one.similarity * one.confidence for one in chosen], atol=1e-5)
    assert (np.diff(scores) <= 0).all()
    assert labels.max() <= len(points)


def test_a_missing_sam_is_told_before_an_encoder_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(pipeline, "load_encoder", lambda *given: loaded.append(given))
    with pytest.raises(NotFoundError, match="SAM checkpoint: expected"):
        CryoSAM.from_preset("foundation", device="cpu")
    assert not loaded


def test_paper_keeps_every_size() -> None:
    def ball(radius: int, place: int) -> Instance:
        z, y, x = np.indices((2 * radius + 1,) * 3) - radius
        return Instance(
            mask=z**2 + y**2 + x**2 <= radius**2,
            origin_zyx=(0, 0, place - radius),
            prompt_zyx=(float(radius), float(radius), float(place)),
            similarity=0.5,
            confidence=0.5,
            score=0.25,
            expected_precision=0.5,
        )

    some = [ball(0, 10), ball(4, 40), ball(12, 80)]
    assert len(selection.select(some, [some[1]], RADIUS, preset("paper").instances)) == 3
    assert len(selection.select(some, [some[1]], RADIUS, preset("foundation").instances)) == 1
