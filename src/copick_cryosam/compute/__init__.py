"""Many tomograms: the only place that decides where work runs (in this process, one run after the other)."""

from __future__ import annotations

from copick_cryosam.compute.outcomes import Listener, Outcome, Summary
from copick_cryosam.compute.planning import Plan, PlannedRun, plan
from copick_cryosam.compute.running import run_job

__all__ = ["Listener", "Outcome", "Plan", "PlannedRun", "Summary", "plan", "run_job"]
