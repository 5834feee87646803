"""A self-contained HTML report: what was picked, how it looks, and how to repeat it.

One file without scripts or outside resources, so that it opens offline and can be sent on. Slices and crops
are embedded images under vector overlays; charts are vector graphics.
"""

from __future__ import annotations

from copick_cryosam.report.model import Report, RunReport
from copick_cryosam.report.page import render_report, write_report

__all__ = ["Report", "RunReport", "render_report", "write_report"]
