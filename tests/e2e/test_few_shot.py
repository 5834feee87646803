"""The commands of examples/few_shot.md one after another, on a smaller project and with fewer steps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from copick_cryosam import SasiSettings
from copick_cryosam.demo.scene import DemoScene, prepare
from copick_cryosam.sasi.settings import sasi_settings

PAGE = Path(__file__).resolve().parents[2] / "examples" / "few_shot.md"
SCENE = DemoScene(shape_zyx=(32, 88, 88), counts=(20, 14), runs=("TS_001", "TS_002"))
QUICK = {"window": 16, "training": {"steps": 4, "batch": 2, "check_every": 2}}
OBJECTS = ("chaperone", "enzyme")

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(*kinds: str) -> list[tuple[str, str]]:
    """What stands between ```KIND and ``` on the page: kind and text, in their order."""
    found = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [(kind, text) for kind, text in found if kind in kinds]


def known(settings: Mapping[str, Any], name: str) -> bool:
    section, _, field = name.partition(".")
    return field in settings.get(section, {})


def test_settings_that_the_page_names_exist() -> None:
    ((_, file),) = blocks("yaml")
    sasi_settings(yaml.safe_load(file))  # refuses unknown ones
    defaults = SasiSettings().model_dump()
    named = re.findall(r"`([a-z_]+\.[a-z_]+)`", PAGE.read_text(encoding="utf-8").partition("## 5.")[2])
    named = [name for name in named if name.partition(".")[0] in defaults]
    assert len(named) > 6
    assert [name for name in named if not known(defaults, name)] == []


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copick_cli: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COPICK_CONFIG", raising=False)
    prepare(tmp_path / "demo", SCENE)
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    printed: list[str] = []
    for kind, text in blocks("sh", "python"):
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.strip().splitlines():
            program, *words = shlex.split(line)
            assert program == "copick"
            done = copick_cli(*words)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            printed.append(done.output)
            assert ("--dry-run" in words) == ("Nothing was written." in done.output)
            if "--dry-run" in words:
                assert {path.name for path in tmp_path.iterdir()} == {"demo", "few.yaml"}
    assert len(printed) == 11
    assert "chaperone [" in capsys.readouterr().out  # what the last block prints
    models = {"few", "paper", "ladder"}
    names = {f"{name}{ending}" for name in models for ending in (".safetensors", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "few.yaml", "few.png", *names}
    records = {name: json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in models}
    few, ladder = records["few"], records["ladder"]
    assert [few["settings"]["init"], ladder["settings"]["init"]] == ["embednet", "embednet"]
    assert records["paper"]["settings"]["architecture"] == "deepfinder"
    mine = few["training"]["points"]
    assert {point["source"] for point in mine} == {"human"}
    beside = [point for point in ladder["training"]["points"] if point["source"] == "pseudo"]
    assert len(ladder["training"]["points"]) == len(mine) + len(beside)
    assert {point["picks"] for point in beside} <= {f"{name}:cryosam/few" for name in OBJECTS}
    assert beside

    import copick

    for run in copick.from_file("demo/config.json").runs:
        for name in OBJECTS:
            assert {p.session_id for p in run.get_picks(name, user_id="sasi")} == {"1", "ladder"}
