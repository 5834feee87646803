"""A small simulated project, picked from one seed and scored against its truth."""

from __future__ import annotations

from copick_cryosam.demo.picking import ObjectScore, RunScore, pick_and_score
from copick_cryosam.demo.scene import FULL, OBJECTS, DemoScene, prepare

__all__ = ["FULL", "OBJECTS", "DemoScene", "ObjectScore", "RunScore", "pick_and_score", "prepare"]
