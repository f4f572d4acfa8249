"""What a run came to, for people: a value built from its record, and one self-contained HTML file of it."""

from __future__ import annotations

from mtl_cloud.report.build import Life, Report, RunSource, build_report
from mtl_cloud.report.render import render_html

__all__ = ["Life", "Report", "RunSource", "build_report", "render_html"]
