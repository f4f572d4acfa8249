"""Rendering of a comparison: its table as columns of text, as Markdown and as an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import mtl_cloud
from mtl_cloud.compare import RECALL, Comparison, Measure, Row
from mtl_cloud.report.formatting import dollars, duration, number, percent
from mtl_cloud.report.metrics import label
from mtl_cloud.report.sections import Cell, Column
from mtl_cloud.tasks import HEADLINE

__all__ = ["TEXT_COLUMNS", "columns", "markdown", "render_comparison", "worker_columns"]

TEXT_COLUMNS = frozenset({"configuration", "tasks", "dataset", "differs in"})
"""Titles of the columns that hold text; all others hold numbers."""

_SHORT = {"classification": "cls", "detection": "det", "segmentation": "seg"}


class _Quantity(NamedTuple):
    """One column of measures."""

    title: str
    of: Callable[[Row], Measure | None]
    format_value: Callable[[float | None], str]
    strong: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """The columns of the table, which has a row for each configuration. Columns without a value are left out."""
    rows = comparison.rows
    found = [
        Column("configuration", [_text_cell(row.label) for row in rows]),
        Column("tasks", [_text_cell("+".join(_SHORT[task] for task in row.tasks)) for row in rows]),
        Column("dataset", [_text_cell(row.dataset) for row in rows]),
        Column("workers", [_integer_cell(row.workers) for row in rows]),
        Column("runs", [_integer_cell(len(row.run_ids)) for row in rows]),
        *(_measured(quantity, rows) for quantity in _quantities(comparison)),
        Column("epochs", [_integer_cell(row.epochs) for row in rows]),
        Column("differs in", [_text_cell(", ".join(row.differs)) for row in rows]),
    ]
    return [column for column in found if any(cell.value not in {None, ""} for cell in column.cells)]


def worker_columns(comparison: Comparison) -> list[Column]:
    """Columns that compare few with more loader workers; empty if no configuration ran with both."""
    effects = comparison.workers
    if not effects:
        return []
    speeds = [(effect.fewer.images_per_s.mean, effect.more.images_per_s.mean) for effect in effects]
    waits = [(effect.fewer.data_wait.mean, effect.more.data_wait.mean) for effect in effects]
    return [
        Column("configuration", [_text_cell(effect.more.label) for effect in effects]),
        Column("dataset", [_text_cell(effect.more.dataset) for effect in effects]),
        Column("workers", [_text_cell(f"{effect.fewer.workers} → {effect.more.workers}") for effect in effects]),
        Column("images/s", [_text_cell(f"{number(few)} → {number(more)}") for few, more in speeds]),
        Column("data wait", [_text_cell(f"{percent(few)} → {percent(more)}") for few, more in waits]),
        Column("speed-up", [Cell(_times(effect.speedup), effect.speedup) for effect in effects], strong=True),
    ]


def markdown(comparison: Comparison) -> str:
    """The tables and the notes in GitHub's Markdown."""
    tables = [_markdown_table(found) for found in (columns(comparison), worker_columns(comparison)) if found]
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    return "\n".join([*tables, notes])


def render_comparison(comparison: Comparison) -> str:
    """Render the self-contained page. The same comparison gives the same text.

    Raises
    ------
    MissingExtraError
        The extra ``report`` is not installed.
    """
    from mtl_cloud.report.render import page_environment

    return (
        page_environment()
        .get_template("compare.html.j2")
        .render(
            version=mtl_cloud.__version__,
            comparison=comparison,
            columns=columns(comparison),
            workers=worker_columns(comparison),
            text_columns=TEXT_COLUMNS,
        )
    )


def _quantities(comparison: Comparison) -> Iterable[_Quantity]:
    for task in comparison.tasks:
        for metric in (HEADLINE[task], RECALL[task]):
            title = f"{_SHORT[task]} {label(metric, task)}, %"
            yield _Quantity(title, _metric(task, metric), _points, strong=metric == HEADLINE[task])
    yield _Quantity("Δm, %", lambda row: row.delta.measure if row.delta else None, _signed, strong=True)
    yield _Quantity("training", lambda row: row.training_s, duration)
    yield _Quantity("images/s", lambda row: row.images_per_s, number)
    yield _Quantity("data wait, %", lambda row: row.data_wait, _points)
    yield _Quantity("cost", lambda row: row.usd, dollars)


def _metric(task: str, metric: str) -> Callable[[Row], Measure | None]:
    return lambda row: row.metrics.get(task, {}).get(metric)


def _measured(quantity: _Quantity, rows: Sequence[Row]) -> Column:
    return Column(quantity.title, [_cell(quantity, quantity.of(row)) for row in rows], quantity.strong)


def _cell(quantity: _Quantity, measure: Measure | None) -> Cell:
    if measure is None or measure.mean is None:
        return Cell("", None)
    spread = "" if measure.std is None else f" ± {quantity.format_value(measure.std).lstrip('+')}"
    return Cell(quantity.format_value(measure.mean) + spread, measure.mean)


def _text_cell(text: str) -> Cell:
    return Cell(text, text)


def _integer_cell(value: int) -> Cell:
    return Cell(str(value), value)


def _points(value: float | None) -> str:
    """A fraction in per cent, without the sign, which is in the column's title."""
    return number(None) if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return number(None) if value is None else f"{value:+.2f}"


def _times(value: float | None) -> str:
    return number(None) if value is None else f"{value:.2f} x"


def _markdown_table(found: Sequence[Column]) -> str:
    titles = [column.title for column in found]
    rule = [":---" if title in TEXT_COLUMNS else "---:" for title in titles]
    lines = [titles, rule, *(list(texts) for texts in zip(*(_texts(column) for column in found), strict=True))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _texts(column: Column) -> list[str]:
    return [cell.text.replace("|", "\\|") for cell in column.cells]
