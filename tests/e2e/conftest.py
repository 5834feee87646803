"""A project of noisy tomograms with dark balls, and the real `copick` command to run on it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

SHAPE = (40, 64, 72)
SPACING = 10.0
RADIUS = 5
BALLS = {"TS_001": 10, "TS_002": 6, "TS_003": 8}
BASE = ("-t", "wbp@10.0", "-i", "ribosome:curator/1", "--preset", "fake")


def balls(
    count: int, seed: int, shape: tuple[int, int, int] = SHAPE
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Noise with dark balls of radius `RADIUS`, and their centres in voxels z, y, x."""
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=shape).astype(np.float32)
    centres: list[NDArray[np.float64]] = []
    while len(centres) < count:
        centre = rng.uniform(RADIUS + 1, np.array(shape) - RADIUS - 2)
        if all(np.linalg.norm(centre - other) > 2.6 * RADIUS for other in centres):
            centres.append(centre)
    z, y, x = np.indices(shape)
    for centre in centres:
        volume[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= RADIUS**2] -= 3
    return volume, np.array(centres)


class BallProject:
    """Three tomograms in a read-only part; one ball of TS_001 is labelled as ribosome:curator/1."""

    spacing = SPACING
    radius = RADIUS
    shape = SHAPE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.truth = {run: balls(count, seed)[1] for seed, (run, count) in enumerate(BALLS.items())}
        particle = {"is_particle": True, "radius": RADIUS * SPACING}
        self.content: dict[str, Any] = {
            "config_type": "filesystem",
            "name": "balls",
            "version": "1.0",
            "pickable_objects": [
                {"name": "ribosome", "label": 1, **particle},
                {"name": "gold", "label": 2, **particle},
            ],
            "static_root": f"local://{folder / 'static'}",
            "overlay_root": f"local://{folder / 'overlay'}",
            "overlay_fs_args": {"auto_mkdir": True},
        }
        self.write_config()

    def fill(self) -> None:
        """Write the tomograms and the seed."""
        for seed, (run, count) in enumerate(BALLS.items()):
            self.add_tomogram(run, balls(count, seed)[0])
        self.add_picks("TS_001", self.truth["TS_001"][:1, ::-1] * SPACING)

    def write_config(self, **changes: Any) -> None:
        """Write the configuration with some entries changed."""
        self.config.write_text(json.dumps({**self.content, **changes}), encoding="utf-8")

    def root(self) -> Any:
        """A fresh copick root of the project."""
        import copick

        return copick.from_file(str(self.config))

    def static_root(self) -> Any:
        """A copick root that writes into the read-only part."""
        import copick

        content = {key: value for key, value in self.content.items() if key != "static_root"}
        return copick.from_string(json.dumps({**content, "overlay_root": self.content["static_root"]}))

    def add_tomogram(self, run: str, volume: NDArray[Any], spacing: float = SPACING) -> None:
        """Write a tomogram, in place of one that is there."""
        shutil.rmtree(self.folder / f"static/ExperimentRuns/{run}/VoxelSpacing{spacing:.3f}", ignore_errors=True)
        place = self.static_root().new_run(run, exist_ok=True).new_voxel_spacing(spacing, exist_ok=True)
        place.new_tomogram("wbp").from_numpy(np.asarray(volume, dtype=np.float32), levels=1)

    def add_picks(self, run: str, xyz: Any, name: str = "ribosome", user: str = "curator") -> None:
        """Write picks in Å (x, y, z), in place of those that are there."""
        picks = self.static_root().get_run(run).new_picks(name, "1", user, exist_ok=True)
        picks.from_numpy(np.asarray(xyz, dtype=float).reshape(-1, 3))

    def chunk(self, run: str) -> Path:
        """The file of the tomogram's only chunk."""
        return self.folder / f"static/ExperimentRuns/{run}/VoxelSpacing10.000/wbp.zarr/0/0/0/0"

    def listing(self, under: str = ".") -> dict[str, str]:
        """Everything under a folder of the project, folders too, with the hash of each file."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in (self.folder / under).rglob("*")
        }

    def arguments(self, *more: str, base: tuple[str, ...] = BASE) -> list[str]:
        """What follows `copick` in a call on this project."""
        return ["inference", "cryosam", "-c", str(self.config), *base, *more]

    def pick(self, *more: str, base: tuple[str, ...] = BASE) -> Result:
        """`copick inference cryosam` in this process."""
        return copick_command(*self.arguments(*more, base=base))

    def start(self, *more: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, after some Python code that runs `before` it."""
        code = f"{before}\nfrom copick.cli.cli import main\nmain()"
        words = [sys.executable, "-c", code, *self.arguments(*more)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def refused(self, result: Result, words: str, before: dict[str, str]) -> None:
        """Exactly one line says what is wrong, with `words` in it, and the project is as `before`."""
        assert result.exit_code != 0, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, result.output
        assert words in errors[0]
        assert "Traceback" not in result.output
        assert self.listing() == before

    def found(self, run: str, session: str = "1") -> tuple[NDArray[np.float64], Any]:
        """Picks of a run in voxels z, y, x, and copick's object for them."""
        (picks,) = self.root().get_run(run).get_picks("ribosome", "cryosam", session)
        return picks.full_positions().reshape(-1, 3)[:, ::-1] / SPACING, picks


def copick_command(*arguments: str) -> Result:
    """The `copick` command with its plugins, as installed."""
    from copick.cli.cli import cli

    return CliRunner().invoke(cli, list(arguments), prog_name="copick")


@pytest.fixture
def copick_cli() -> Any:
    """`copick_command`, for calls that are no picking."""
    return copick_command


@pytest.fixture(scope="session")
def ball_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled project to copy."""
    project = BallProject(tmp_path_factory.mktemp("balls"))
    project.fill()
    return project.folder


@pytest.fixture
def ball_project(ball_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BallProject:
    """A project of its own for each test."""
    monkeypatch.delenv("COPICK_CONFIG", raising=False)
    folder = tmp_path / "balls"
    shutil.copytree(ball_template, folder)
    return BallProject(folder)
