"""The wheel holds what it needs, and works where nothing of the source tree is.

It is installed into an empty environment that borrows the dependencies of the one that runs the tests, without those
of the extra `foundation`, as a plain ``pip install copick-cryosam`` leaves them out. Nothing is downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = [ROOT / "src/copick_cryosam/weights" / f"{name}.safetensors" for name in ("embednet", "promptnet")]

EXTRA = ("transformers", "huggingface_hub", "tokenizers", "hf_xet")
"""What the extra `foundation` adds."""

pytestmark = pytest.mark.skipif(
    not all(path.is_file() for path in WEIGHTS), reason="the weights are not in this source tree"
)

PICK = """
import numpy as np
import copick_cryosam

rng = np.random.default_rng(0)
z, y, x = np.indices((40, 64, 64))
volume = rng.normal(size=z.shape).astype(np.float32)
for centre in ((20, 16, 16), (20, 46, 18), (18, 30, 46)):
    ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 36
    volume[ball] -= 3
found = copick_cryosam.CryoSAM.from_preset("embedded", device="cpu").pick(volume, [[20, 16, 16]], 6, voxel_spacing=10.0)
nearest = min(np.linalg.norm(np.array(one.centroid_zyx) - (20, 16, 16)) for one in found)
print(copick_cryosam.__file__, copick_cryosam.__version__, len(found), nearest < 6, sep="\\n")
"""

COPICK = "import sys; from copick.cli.cli import main; sys.argv[0] = 'copick'; main()"


class Installed:
    """The environment with the wheel, and a folder to work in that is far from the sources."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        self.home = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.home], check=True)
        scripts = self.home / ("Scripts" if os.name == "nt" else "bin")
        self.python, self.command = scripts / "python", scripts / "copick-cryosam"
        site = self.run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for place in Path(sysconfig.get_path("purelib")).iterdir():
            if place.name.split("-")[0] not in ("copick_cryosam", *EXTRA):
                (borrowed / place.name).symlink_to(place)
        # A folder named in a .pth file is searched, but the .pth file of an editable install in it is not read.
        (Path(site) / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", "--no-index")
        self.run(*pip, wheel)

    def run(self, *words: object) -> str:
        """Run a command in the far folder and return what it prints."""
        result = self.start(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def start(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command in the far folder, whatever comes of it."""
        ours = ("PYTHON", "COPICK", "CRYOSAM")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            [str(word) for word in words], cwd=self.folder, env=clean, check=False, capture_output=True, text=True
        )

    def copick(self, *words: str) -> str:
        """The `copick` command of this environment."""
        return self.run(self.python, "-c", COPICK, *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source tree with what is installed here."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "copick_cryosam/py.typed",
        "copick_cryosam/templates/report.html.j2",
        "copick_cryosam/weights/embednet.safetensors",
        "copick_cryosam/weights/promptnet.safetensors",
        "copick_cryosam/cli/group.py",
    ):
        assert needed in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"copick_cryosam"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "test" in name.split("/")[0] or name.endswith((".pt", ".pyc"))]
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert wheel.stat().st_size < 20e6


def test_picks_without_the_source_tree(installed: Installed) -> None:
    file, version, count, near = installed.run(installed.python, "-c", PICK).splitlines()
    assert Path(file).is_relative_to(installed.home)
    assert version != "unknown"
    assert int(count) >= 1
    assert near == "True"


def test_commands_are_listed(installed: Installed) -> None:
    assert "cryosam" in installed.copick("--help")
    assert "cryosam" in installed.copick("inference", "--help")
    assert "--preset" in installed.copick("inference", "cryosam", "--help")
    assert "demo" in installed.run(installed.command, "--help")


def test_info_finds_the_models_of_the_wheel(installed: Installed) -> None:
    info = installed.copick("cryosam", "info")
    assert str(ROOT) not in info
    assert "embednet" in info


def test_foundation_models_say_what_to_install(installed: Installed) -> None:
    info = installed.copick("cryosam", "info")
    assert "transformers     not installed" in info
    assert "none in its cache" in info
    assert "dinov2-reg-large" in installed.copick("cryosam", "models")
    (installed.folder / "config.json").write_text("{}", encoding="utf-8")
    words = ("inference", "cryosam", "-c", "config.json", "-t", "wbp@10.0", "-i", "ribosome:curator/1")
    for preset in ("foundation", "paper"):
        before = set(installed.folder.iterdir())
        result = installed.start(installed.python, "-c", COPICK, *words, "--preset", preset)
        assert result.returncode == 1, result.stdout
        (line,) = result.stderr.splitlines()
        assert line == (
            "Error: encoder dinov2-reg-large: expected the package transformers, found none. "
            "pip install 'copick-cryosam[foundation]'"
        )
        assert set(installed.folder.iterdir()) == before
