"""The commands of examples/quickstart.md, run one after another as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "examples" / "quickstart.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_every_command_works(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = {}
    for command in commands():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout + done.stderr
    assert len(printed) == 7
    assert (tmp_path / "demo" / "report.html").is_file()
    assert (tmp_path / "demo" / "enzyme.html").is_file()
    again = [text for command, text in printed.items() if command.endswith("-i enzyme:curator/1")]
    assert "3 skipped" in again[0]
    star = (tmp_path / "demo" / "particles.star").read_text(encoding="utf-8")
    assert "rlnTomoImportParticleFile" in star
    coordinates = list((tmp_path / "demo" / "coordinates").glob("*.star"))
    assert len(coordinates) == 3
    assert all(re.search(r"\d\.\d", path.read_text(encoding="utf-8")) for path in coordinates)
