"""Bad input gives one line with a hint, a code that is not zero, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from copick_cryosam.foundation.catalogue import VARIABLE
from copick_cryosam.foundation.sam_modules import official

SEED = ("-i", "ribosome:curator/1", "--preset", "fake")


def with_noise(project: Any, run: str = "TS_001", **changes: Any) -> None:
    """Replace a tomogram by one that cannot be used."""
    volume = np.random.default_rng(5).normal(size=changes.get("shape", project.shape)).astype(np.float32)
    if "value" in changes:
        volume[...] = changes["value"]
    if "nan" in changes:
        volume[3, 4, 5] = np.nan
    project.add_tomogram(run, volume)


def break_chunk(project: Any, run: str = "TS_001") -> bytes:
    """Cut a tomogram's chunk in half and return how it was."""
    path = project.chunk(run)
    whole: bytes = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


Change = Callable[[Any], object]
UNUSABLE: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "broken JSON": (lambda p: p.config.write_text("{"), (), "expected JSON"),
    "no configuration": (lambda p: p.config.write_text("[]"), (), "expected a JSON object"),
    "unknown file system": (lambda p: p.write_config(overlay_root="nowhere://x"), (), "config"),
    "unknown object": (lambda p: None, ("-i", "virus:curator/1"), "expected a pickable object"),
    "no seeds": (lambda p: None, ("-i", "ribosome:nobody/1"), "Picks of ribosome are ribosome:curator/1"),
    "seeds with a spacing": (lambda p: None, ("-i", "ribosome:curator/1@10"), "found none in 3 runs"),
    "no seeds in this run": (lambda p: None, ("--seed-runs", "TS_002"), "found none in 1 run"),
    "seeds outside": (
        lambda p: p.add_picks("TS_001", [[10.0, 10.0, 1e5]]),
        (),
        "run TS_001: expected seeds inside 720 x 640 x 400 Å (x, y, z), found 1 outside, the first at (10, 10, 100000)",
    ),
    "seed on noise": (lambda p: with_noise(p), (), "run TS_001: polarity"),
    "unknown negatives": (lambda p: None, ("--negatives", "gold:curator/1"), "negatives: expected points"),
    "unknown region": (lambda p: None, ("--roi", "gold:curator/1", "-r", "TS_001"), "expected region of interest"),
    "wrong spacing": (lambda p: None, ("-t", "wbp@20.0"), "expected tomogram wbp@20.0, found wbp@10.0"),
    "wrong type": (lambda p: None, ("-t", "denoised@10.0"), "expected tomogram denoised@10.0, found wbp@10.0"),
    "unknown run": (lambda p: None, ("-r", "TS_009"), "Runs are TS_001, TS_002, TS_003"),
    "unknown seed run": (lambda p: None, ("--seed-runs", "TS_009"), "found 'TS_009'"),
    "NaN": (lambda p: with_noise(p, nan=True), (), "run TS_001, tomogram wbp@10.0: expected finite values"),
    "constant": (lambda p: with_noise(p, value=2.0), (), "expected contrast, found the value 2 in every voxel"),
    "tiny": (lambda p: with_noise(p, shape=(40, 64, 15)), ("-i", "gold:middle/1"), "expected at least 16 voxels"),
    "corrupt chunk": (lambda p: break_chunk(p), (), "run TS_001, tomogram wbp@10.0: expected readable chunks"),
    "wrong polarity": (lambda p: None, ("--polarity", "light"), "Use --polarity dark or --polarity auto"),
    "unknown encoder": (lambda p: None, ("--encoder", "vit-z"), "a folder, found 'vit-z'. Choose one of these"),
    "no picks asked for": (lambda p: None, ("--max-picks", "0"), "instances.max_picks"),
    "negative picks": (lambda p: None, ("--max-picks", "-3"), "instances.max_picks"),
    "picks in words": (lambda p: None, ("--max-picks", "many"), "'many' is not a valid integer"),
    "impossible precision": (lambda p: None, ("--min-precision", "2"), "instances.min_precision"),
    "precision that is no number": (lambda p: None, ("--min-precision", "nan"), "instances.min_precision"),
    "unknown preset": (lambda p: None, ("--preset", "huge"), "'huge' is not one of 'embedded', 'foundation', 'paper'"),
    "missing settings": (lambda p: None, ("--settings", "/nowhere/settings.yaml"), "settings file"),
    "report nowhere": (lambda p: None, ("--report", "/nowhere/report.html"), "expected an existing folder"),
    "output without an object": (lambda p: None, ("-o", "virus:cryosam/1"), "expected a pickable object"),
    "output that exists": (
        lambda p: p.add_picks("TS_002", [[1.0, 2.0, 3.0]], user="cryosam"),
        (),
        "read-only part of the project",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_refused(ball_project: Any, case: str) -> None:
    change, arguments, words = UNUSABLE[case]
    if case == "tiny":
        ball_project.add_picks("TS_001", [[70.0, 300.0, 200.0]], name="gold", user="middle")
    change(ball_project)
    before = ball_project.listing()
    began = time.perf_counter()
    ball_project.refused(ball_project.pick(*arguments), words, before)
    assert time.perf_counter() - began < 10


URIS = {
    "-t": ("", "wbp@", "wbp@ten", "wbp@-10", "wbp@0", "@10", "w*p@10", "wbp@10@10", "wbp@nan"),
    "-i": ("", ":curator/1", "*:curator/1", "re:ribo:curator/1", "ribosome:/", "rib osome"),
    "-o": ("ribosome:*x/1", "ribosome:a_b/1", "ribosome:cryosam/a b", "ribosome:curator/1", "ribosome:cryosam/1/2"),
    "-os": ("ribosome:cryosam/1@20", "ribosome:cryosam/1@x", "ribosome?multilabel=true", "ribosome:a b/1"),
    "--negatives": ("*", ":x"),
    "--roi": ("*", "gold@x", ":curator/1"),
}


@pytest.mark.parametrize(("option", "uri"), [(option, uri) for option, uris in URIS.items() for uri in uris])
def test_malformed_uri(ball_project: Any, option: str, uri: str) -> None:
    before = ball_project.listing()
    ball_project.refused(ball_project.pick(option, uri), "URI", before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instances: {max_pick: 3}", "setting instances.max_pick"),
        ("instance: {max_picks: 3}", "setting instance"),
        ("instances: [1, 2", "not YAML"),
        ("- 1", "expected a mapping"),
        ("instances: {max_picks: few}", "instances.max_picks"),
        ("segmenter: {iou_stop: .inf}", "segmenter.iou_stop"),
        ("segmenter: {name: sam9}", ", found 'sam9'. Choose one of these segmenters"),
    ],
)
def test_settings_file(ball_project: Any, text: str, words: str) -> None:
    path = ball_project.folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    before = ball_project.listing()
    ball_project.refused(ball_project.pick("--settings", str(path)), words, before)


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM ViT-B of zeros: each tensor is one number repeated, so the file is small."""
    with torch.device("meta"):
        sam = official("build_sam").sam_model_registry["vit_b"]()
    path = tmp_path_factory.mktemp("zeros") / "zeros.pth"
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in sam.state_dict().items()}, path)
    return path


@pytest.fixture
def models(tmp_path: Path, zeros: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models that cannot be used, and the current folder; CRYOSAM_CHECKPOINTS is not set."""
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    whole = zeros.read_bytes()
    for name, content in {
        "zeros.pth": whole,
        "short.pth": whole[: len(whole) // 2],
        "page.pth": b"<!DOCTYPE html><html>403 Forbidden</html>",
        "empty.pth": b"",
        "sam_vit_h_4b8939.pth": whole,
        "encoder2048.yaml": b"encoder: {longest_side: 2048}",
        "segmenter2048.yaml": b"segmenter: {longest_side: 2048}",
        "vit_l.yaml": b"segmenter: {model: vit_l}",
        "sam2.yaml": b"segmenter: {name: sam2}",
    }.items():
        (folder / name).write_bytes(content)
    torch.save({"weight": torch.zeros(3), "more": RunsCode(folder / "made")}, folder / "code.pth")
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(3)}, folder / "mobile.pth")
    for name, config in {
        "nothing": None,
        "bert": '{"model_type": "bert"}',
        "no-weights": '{"model_type": "dinov2"}',
        "pickled": '{"model_type": "dinov2"}',
    }.items():
        (folder / name).mkdir()
        if config is not None:
            (folder / name / "config.json").write_text(config, encoding="utf-8")
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    return folder


def foundation(checkpoint: str, *more: str) -> tuple[str, ...]:
    """The preset with a checkpoint, and an encoder that is part of the package."""
    return ("--preset", "foundation", "--encoder", "embednet", "--sam-checkpoint", checkpoint, *more)


MODELS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "no checkpoint": (
        ("--preset", "foundation"),
        "expected sam_vit_h_4b8939.pth or sam_vit_l_0b3195.pth or sam_vit_b_01ec64.pth, found no folder",
        "Download https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth (2.6 GB) and give it with "
        "--sam-checkpoint",
    ),
    "no checkpoint of this type": (("--preset", "paper"), "expected sam_vit_h_4b8939.pth, found no folder", "Download"),
    "no such file": (foundation("sam.pth"), "sam.pth, found no such file", "Check the path"),
    "a folder": (foundation("nothing"), "expected a file, found a folder", "Give the file in it"),
    "an empty file": (foundation("empty.pth"), "expected weights, found an empty file", "Download the file again"),
    "cut short": (foundation("short.pth"), "bytes that end too early", "Download the file again"),
    "a web page": (foundation("page.pth"), "expected a torch file, found a web page", "Download the file again"),
    "code": (
        foundation("code.pth"),
        "mkdir; it is refused because it would run code, and nothing was run",
        "Use the official file",
    ),
    "MobileSAM": (
        foundation("mobile.pth"),
        "expected the original SAM (vit_h, vit_l, vit_b), found MobileSAM",
        "Use an official checkpoint",
    ),
    "an official name": (foundation("sam_vit_h_4b8939.pth"), "expected 2564550879 bytes, found", "Download https://"),
    "another type": (
        foundation("zeros.pth", "--settings", "vit_l.yaml"),
        "expected SAM vit_l, found SAM vit_b",
        "Give the checkpoint of SAM",
    ),
    "another type than the paper's": (
        ("--preset", "paper", "--sam-checkpoint", "zeros.pth"),
        "expected SAM vit_h, found SAM vit_b",
        "Give the checkpoint of SAM",
    ),
    "a checkpoint for nobody": (
        ("--preset", "embedded", "--sam-checkpoint", "zeros.pth"),
        "expected a segmenter or an encoder that is sam, found promptnet and embednet",
        "Add --preset foundation",
    ),
    "a checkpoint for SAM 2": (
        foundation("zeros.pth", "--settings", "sam2.yaml"),
        "expected a segmenter or an encoder that is sam, found sam2 and embednet",
        "Leave --sam-checkpoint out, and choose SAM 2 with segmenter: {name: sam2, checkpoint: NAME}",
    ),
    "no such folder": (("--encoder", "./dino"), "expected the folder ./dino, found no such folder", "Check the path"),
    "an empty folder": (
        ("--encoder", "nothing"),
        "expected a folder with config.json, found none in it",
        "Give the folder of a transformer",
    ),
    "a file as a folder": (("--encoder", "./zeros.pth"), "safetensors, found a file", "Give the folder that holds it"),
    "a language model": (
        ("--encoder", "bert"),
        "expected a model of type vit (DINO), dinov2 (DINOv2),",
        "found bert. Use one of these",
    ),
    "no weights": (("--encoder", "no-weights"), "expected model.safetensors, found none", "Download it"),
    "a pickle in a folder": (
        ("--encoder", "pickled"),
        "found only pickled weights (pytorch_model.bin)",
        "Save it again",
    ),
    "a pickle at Hugging Face": (("--encoder", "dino-base"), "found only pickled weights", "Save it again"),
    "no commit": (("--encoder", "someone/model"), "expected the commit of someone/model to use", "Set it to a commit"),
    "more than the encoder was trained at": (
        ("--preset", "embedded", "--encoder", "sam", "--sam-checkpoint", "zeros.pth", "--settings", "encoder2048.yaml"),
        "encoder.longest_side: expected at most 1024, found 2048",
        "Leave it out",
    ),
    "more than SAM was trained at": (
        foundation("zeros.pth", "--settings", "segmenter2048.yaml"),
        "setting segmenter.longest_side: ",
        "found 2048. ",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_refused_model(ball_project: Any, models: Path, case: str) -> None:
    arguments, words, hint = MODELS[case]
    before = ball_project.listing()
    result = ball_project.pick(*arguments)
    ball_project.refused(result, words, before)
    (line,) = result.stderr.splitlines()
    assert hint in line.split(words)[1]
    assert not (models / "made").exists()


def test_no_folder_of_checkpoints(ball_project: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(models / "missing"))
    before = ball_project.listing()
    result = ball_project.pick("--preset", "foundation")
    ball_project.refused(result, f"found none in {models / 'missing'} (no such folder). Download https://", before)
    # A whole file that is only named as the official one is found there, and refused.
    monkeypatch.setenv(VARIABLE, str(models))
    ball_project.refused(ball_project.pick("--preset", "foundation"), "expected 2564550879 bytes, found", before)


def test_no_config(ball_project: Any, copick_cli: Any) -> None:
    before = ball_project.listing()
    words = ("inference", "cryosam", "-t", "wbp@10.0", *SEED)
    ball_project.refused(copick_cli(*words), "config: expected a copick configuration, found none", before)
    ball_project.refused(copick_cli(*words, "-c", "/nowhere.json"), "'/nowhere.json' does not exist", before)


def test_no_cuda(ball_project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = ball_project.listing()
    ball_project.refused(ball_project.pick("--device", "cuda"), "device: expected cuda, found none", before)


def test_missing_weights(ball_project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from copick_cryosam import weights

    monkeypatch.setattr(weights, "files", lambda _: tmp_path)
    before = ball_project.listing()
    ball_project.refused(ball_project.pick("--preset", "embedded"), "weights of promptnet", before)


def test_read_only_overlay(ball_project: Any) -> None:
    # A file in place of the folder stops every user, also one who may write anywhere.
    (ball_project.folder / "taken").write_text("", encoding="utf-8")
    ball_project.write_config(overlay_root=f"local://{ball_project.folder / 'taken' / 'overlay'}")
    before = ball_project.listing()
    ball_project.refused(ball_project.pick(), "expected a place that can be written", before)


def test_overlay_without_permission(ball_project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    def refuse(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    for name in ("makedirs", "mkdir", "pipe_file"):
        monkeypatch.setattr(LocalFileSystem, name, refuse)
    before = ball_project.listing()
    ball_project.refused(ball_project.pick(), "found: Permission denied", before)


def test_one_bad_run_among_good_ones_and_its_retry(ball_project: Any, copick_cli: Any) -> None:
    whole = break_chunk(ball_project, "TS_002")
    result = ball_project.pick("--max-picks", "5")
    assert result.exit_code == 1
    assert "2 done, 0 skipped, 1 failed" in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "TS_002" in errors[0]
    assert "expected readable chunks" in errors[0]
    assert "Traceback" not in result.output
    assert not (ball_project.folder / "overlay/ExperimentRuns/TS_002").exists()
    for run in ("TS_001", "TS_003"):
        assert len(ball_project.found(run)[0]) == 5

    (line,) = (line for line in result.output.splitlines() if line.startswith("Retry"))
    command = shlex.split(line.split(": ", 1)[1])
    assert command[0] == "copick"
    assert [value for flag, value in itertools.pairwise(command) if flag in ("-r", "--max-picks")] == ["TS_002", "5"]
    assert "--overwrite" not in line

    ball_project.chunk("TS_002").write_bytes(whole)
    again = copick_cli(*command[1:])
    assert again.exit_code == 0, again.output
    assert "1 done, 0 skipped, 0 failed" in again.output
    assert len(ball_project.found("TS_002")[0]) == 5


def test_seeds_of_a_bad_run_do_not_stop_the_others(ball_project: Any) -> None:
    ball_project.add_picks("TS_003", ball_project.truth["TS_003"][:1, ::-1] * ball_project.spacing)
    break_chunk(ball_project, "TS_003")
    result = ball_project.pick()
    assert result.exit_code == 1
    assert "2 done, 0 skipped, 1 failed" in result.output
    assert "-r TS_003" in result.output

    others = ball_project.pick("-r", "TS_001", "--overwrite")
    assert others.exit_code == 1
    assert "1 done, 0 skipped, 0 failed" in others.output
    assert "Error: seeds of TS_003 were not used: run TS_003" in others.output


def test_a_fault_in_a_process_of_its_own(ball_project: Any) -> None:
    before = ball_project.listing()
    done = ball_project.start("-t", "wbp@20.0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "found wbp@10.0. Give one that is stored with -t type@spacing" in done.stderr
    assert ball_project.listing() == before
