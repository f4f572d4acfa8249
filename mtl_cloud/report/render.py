"""The report as one HTML file: without network access or scripts, with light and dark theme, printable."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

import mtl_cloud
from mtl_cloud.errors import MissingExtraError
from mtl_cloud.report import formatting, metrics, sections
from mtl_cloud.report.samples import sample_views

if TYPE_CHECKING:
    from jinja2 import Environment

    from mtl_cloud.report.build import Report

__all__ = ["page_environment", "render_html"]


def render_html(report: Report) -> str:
    """Render the page. The same report gives the same text.

    Raises
    ------
    MissingExtraError
        The extra ``report`` is not installed.
    RecordError
        A sample's image cannot be decoded.
    """
    template = page_environment().get_template("report.html.j2")
    return template.render(
        version=mtl_cloud.__version__,
        report=report,
        plan=report.plan,
        rounds=report.rounds,
        tiles=sections.tiles(report),
        facts=sections.facts(report),
        tasks=sections.task_sections(report.rounds),
        speed=sections.speed_figure(report.rounds),
        columns=sections.round_columns(report.rounds),
        samples=sample_views(report.samples),
        sharing=sections.sharing_figure(report.rounds),
        weights=sections.weights_figure(report.rounds),
    )


def page_environment() -> Environment:
    """The templates, with the number formats as filters. Raises ``MissingExtraError`` without the extra ``report``."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("report", "the HTML report") from error
    if find_spec("matplotlib") is None or find_spec("PIL") is None:
        raise MissingExtraError("report", "the HTML report")
    environment = Environment(
        loader=PackageLoader("mtl_cloud.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        formatting.dollars,
        formatting.duration,
        formatting.instant,
        formatting.number,
        formatting.percent,
    ):
        environment.filters[function.__name__] = function
    environment.filters["label"] = metrics.label
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment
