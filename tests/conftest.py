"""Small copick projects on disk, written through copick itself."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SHAPE = (20, 33, 47)
OBJECTS = (
    {"name": "ribosome", "is_particle": True, "label": 1, "radius": 60.0},
    {"name": "apoferritin", "is_particle": True, "label": 2, "radius": 65.0},
    {"name": "membrane", "is_particle": False, "label": 3},
    {"name": "unsized", "is_particle": True, "label": 4},
)


class ProjectOnDisk:
    """A copick project under a folder; with a static part when `static` is given."""

    def __init__(self, folder: Path, overlay: Path | None = None, static: bool = False) -> None:
        self.folder = folder
        self.overlay = overlay or folder / "overlay"
        self.config = folder / "config.json"
        self.content: dict[str, Any] = {
            "config_type": "filesystem",
            "name": "test",
            "version": "1.0",
            "pickable_objects": list(OBJECTS),
            "overlay_root": f"local://{self.overlay}",
            "overlay_fs_args": {"auto_mkdir": True},
        }
        if static:
            self.content["static_root"] = f"local://{folder / 'static'}"
            self.content["static_fs_args"] = {"auto_mkdir": True}
        self.config.write_text(json.dumps(self.content), encoding="utf-8")

    def root(self) -> Any:
        """A fresh copick root of the project."""
        import copick

        return copick.from_file(str(self.config))

    def static_root(self) -> Any:
        """A copick root that writes into the static part."""
        import copick

        content = {k: v for k, v in self.content.items() if not k.startswith("static")}
        return copick.from_string(json.dumps({**content, "overlay_root": self.content["static_root"]}))

    def add_tomogram(
        self,
        run: str,
        volume: NDArray[Any] | None = None,
        spacing: float = 10.0,
        kind: str = "wbp",
        root: Any = None,
    ) -> NDArray[np.float32]:
        """Write a tomogram (noise of `SHAPE` by default) and return it."""
        data = np.random.default_rng(7).normal(size=SHAPE) if volume is None else volume
        place = (root or self.root()).new_run(run, exist_ok=True).new_voxel_spacing(spacing, exist_ok=True)
        # One level: pyramids are copick's matter.
        place.new_tomogram(kind).from_numpy(np.asarray(data, dtype=np.float32), levels=1)
        return np.asarray(data, dtype=np.float32)

    def add_picks(
        self,
        run: str,
        xyz: Any,
        uri: tuple[str, str, str] = ("ribosome", "curator", "1"),
        transforms: Any = None,
        root: Any = None,
    ) -> None:
        """Write picks in Å (x, y, z) for (object, user, session)."""
        name, user, session = uri
        picks = (root or self.root()).new_run(run, exist_ok=True).new_picks(name, session, user)
        picks.from_numpy(np.asarray(xyz, dtype=float).reshape(-1, 3), transforms=transforms)

    def files(self) -> set[str]:
        """Every file under the project's folder, for tests of what is left behind."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def project_on_disk(tmp_path: Path) -> ProjectOnDisk:
    """An empty project whose static and overlay parts are the same folder."""
    return ProjectOnDisk(tmp_path)


@pytest.fixture
def split_project(tmp_path: Path) -> ProjectOnDisk:
    """An empty project with a read-only part and an overlay."""
    return ProjectOnDisk(tmp_path, static=True)


@pytest.fixture(scope="session")
def official_sam() -> ModuleType:
    """Helpers around segment-anything's own modules, see `official_sam.py` beside this file."""
    return _helpers("official_sam")


@pytest.fixture(scope="session")
def random_sam2() -> ModuleType:
    """A tiny SAM 2 of transformers, see `random_sam2.py` beside this file."""
    return _helpers("random_sam2")


def _helpers(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny vision transformers with random weights as transformers saves them, by model type."""
    import torch
    import transformers

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "vit": transformers.ViTConfig(**size, intermediate_size=64, image_size=64, patch_size=16),
        "dinov2": transformers.Dinov2Config(**size, image_size=70, patch_size=14),
        "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(**size, image_size=70, patch_size=14),
        "dinov3_vit": transformers.DINOv3ViTConfig(**size, intermediate_size=64, num_register_tokens=3),
        "bert": transformers.BertConfig(**size, intermediate_size=64, vocab_size=20),
    }
    folder = tmp_path_factory.mktemp("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind, config in configs.items():
            transformers.AutoModel.from_config(config).save_pretrained(folder / kind)
    return {kind: folder / kind for kind in configs}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread: busy test workers with a pool each would only get in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
