"""A comparison for people: one table as text, as Markdown and as a page of its own."""

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
"""Titles of the columns that hold words; all others are numbers."""

_SHORT = {"classification": "cls", "detection": "det", "segmentation": "seg"}


class _Quantity(NamedTuple):
    """One column of measures."""

    title: str
    of: Callable[[Row], Measure | None]
    written: Callable[[float | None], str]
    strong: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """The table, a row for each configuration; columns that no row has a value for are left out."""
    rows = comparison.rows
    found = [
        Column("configuration", [_word(row.label) for row in rows]),
        Column("tasks", [_word("+".join(_SHORT[task] for task in row.tasks)) for row in rows]),
        Column("dataset", [_word(row.dataset) for row in rows]),
        Column("workers", [_whole(row.workers) for row in rows]),
        Column("runs", [_whole(len(row.run_ids)) for row in rows]),
        *(_measured(quantity, rows) for quantity in _quantities(comparison)),
        Column("epochs", [_whole(row.epochs) for row in rows]),
        Column("differs in", [_word(", ".join(row.differs)) for row in rows]),
    ]
    return [column for column in found if any(cell.value not in {None, ""} for cell in column.cells)]


def worker_columns(comparison: Comparison) -> list[Column]:
    """Few against more loader workers; no columns when no configuration ran with both."""
    effects = comparison.workers
    if not effects:
        return []
    speeds = [(effect.fewer.images_per_s.mean, effect.more.images_per_s.mean) for effect in effects]
    waits = [(effect.fewer.data_wait.mean, effect.more.data_wait.mean) for effect in effects]
    return [
        Column("configuration", [_word(effect.more.label) for effect in effects]),
        Column("dataset", [_word(effect.more.dataset) for effect in effects]),
        Column("workers", [_word(f"{effect.fewer.workers} → {effect.more.workers}") for effect in effects]),
        Column("images/s", [_word(f"{number(few)} → {number(more)}") for few, more in speeds]),
        Column("data wait", [_word(f"{percent(few)} → {percent(more)}") for few, more in waits]),
        Column("speed-up", [Cell(_times(effect.speedup), effect.speedup) for effect in effects], strong=True),
    ]


def markdown(comparison: Comparison) -> str:
    """The tables and the notes, as GitHub reads them."""
    tables = [_markdown_table(found) for found in (columns(comparison), worker_columns(comparison)) if found]
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    return "\n".join([*tables, notes])


def render_comparison(comparison: Comparison) -> str:
    """The whole page, self-contained, the same text for the same comparison.

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
            words=TEXT_COLUMNS,
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
    spread = "" if measure.std is None else f" ± {quantity.written(measure.std).lstrip('+')}"
    return Cell(quantity.written(measure.mean) + spread, measure.mean)


def _word(text: str) -> Cell:
    return Cell(text, text)


def _whole(value: int) -> Cell:
    return Cell(str(value), value)


def _points(value: float | None) -> str:
    """A share of one in per cent, without the sign: the column's title has it."""
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
