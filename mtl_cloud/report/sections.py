"""Content of the page, section by section: plain values for the template, figures as SVG text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mtl_cloud.report import figures
from mtl_cloud.report.formatting import dollars, duration, instant, number, percent
from mtl_cloud.report.metrics import (
    Headline,
    curve_names,
    describe_best,
    format_metric,
    headline_metric,
    headlines,
    is_fraction,
    label,
    metric_names,
    metric_series,
    tasks_of,
)
from mtl_cloud.runs.schema import RoundRecord

if TYPE_CHECKING:
    from mtl_cloud.report.build import Report

__all__ = [
    "Cell",
    "Column",
    "TaskSection",
    "Tile",
    "facts",
    "round_columns",
    "sharing_figure",
    "speed_figure",
    "task_sections",
    "tiles",
    "weights_figure",
]

_MAP_CLASSES = 30
"""Maximum number of classes for drawing a confusion matrix; with more, the largest confusions are listed."""
_MAP_COUNTS = 16
"""Maximum number of classes for counts in the cells of a confusion matrix."""
_LISTED_CONFUSIONS = 20
_LOG_RATIO = 100
"""Losses that vary by more than this factor are drawn on a logarithmic axis."""


class Tile(NamedTuple):
    """A number at the top of the page."""

    title: str
    value: str
    notes: list[str]


class Cell(NamedTuple):
    """A table cell: its text, and the recorded value."""

    text: str
    value: float | str | None


class Column(NamedTuple):
    title: str
    cells: list[Cell]
    strong: bool = False


class Confusion(NamedTuple):
    truth: str
    prediction: str
    images: int
    share: float


@dataclass(frozen=True)
class TaskSection:
    """One task: figures (SVG), a table of rounds, and the newest round's classes."""

    task: str
    losses: str | None
    metrics: str | None
    columns: list[Column]
    class_columns: list[Column]
    confusion_map: str | None
    confusions: list[Confusion]


# --- headline --------------------------------------------------------------------------------------------------------


def tiles(report: Report) -> list[Tile]:
    """One tile for each task with a metric, then time, speed and cost if they are known."""
    found = [_headline_tile(headline, len(report.rounds)) for headline in headlines(report.rounds)]
    if report.seconds is not None:
        done = f"{len(report.rounds)} of {report.plan.rounds} rounds"
        found.append(Tile("time", duration(report.seconds), [done]))
    if report.rounds:
        newest = report.rounds[-1]
        found.append(Tile("images/s", number(newest.images_per_s), [f"{percent(newest.data_wait)} waiting for data"]))
    if report.usd is not None:
        found.append(Tile("cost", dollars(report.usd), _price(report)))
    return found


def _headline_tile(headline: Headline, rounds: int) -> Tile:
    task, metric, first, last = headline
    note = f"{format_metric(metric, first)} after round 1" if rounds > 1 else "after round 1"
    return Tile(task, format_metric(metric, last), [label(metric, task), note])


def _price(report: Report) -> list[str]:
    return [] if report.plan.usd_per_hour is None else [f"at {dollars(report.plan.usd_per_hour)} an hour"]


def facts(report: Report) -> list[tuple[str, str]]:
    """Where and how the run was executed, as name and value. Unknown values are left out."""
    plan, attempts = report.plan, report.attempts
    devices = dict.fromkeys(view.attempt.device for view in attempts if view.attempt.device)
    best = report.rounds[-1].best if report.rounds else None
    rows = [
        ("Backend", plan.backend),
        ("Device", ", ".join(devices)),
        ("Host", ", ".join(dict.fromkeys(view.attempt.host for view in attempts))),
        ("Trainer processes", number(plan.processes)),
        ("Planned", instant(plan.created_at)),
        ("Started", instant(attempts[0].attempt.started_at) if attempts else ""),
        ("Ended", instant(report.result.ended_at) if report.result else ""),
        ("Best", describe_best(best) if best else ""),
        ("Time limit", duration(plan.deadline_s) if plan.deadline_s else ""),
        ("Price", f"{dollars(plan.usd_per_hour)} an hour" if plan.usd_per_hour is not None else ""),
        ("Budget", dollars(plan.budget_usd) if plan.budget_usd is not None else ""),
        ("Storage", plan.storage),
        *((f"Tag {name}", value) for name, value in plan.tags.items()),
    ]
    return [(name, value) for name, value in rows if value]


# --- rounds ----------------------------------------------------------------------------------------------------------


def round_columns(rounds: Sequence[RoundRecord]) -> list[Column]:
    """The table of rounds: progress, every task's headline metric, speed, time and cost."""
    columns = [
        _round_column(rounds),
        _column("epoch", (Cell(number(r.epoch), r.epoch) for r in rounds)),
        _column("step", (Cell(number(r.step), r.step) for r in rounds)),
        *(
            _metric_column(rounds, h.task, h.metric, f"{h.task} {label(h.metric, h.task)}", strong=True)
            for h in headlines(rounds)
        ),
        _column("images", (Cell(number(r.images), r.images) for r in rounds)),
        _column("images/s", (Cell(number(r.images_per_s), r.images_per_s) for r in rounds)),
        _column("data wait", (Cell(percent(r.data_wait), r.data_wait) for r in rounds)),
        _column("training", (Cell(duration(r.seconds), r.seconds) for r in rounds)),
        _column("validation", (Cell(duration(r.validation_s), r.validation_s) for r in rounds)),
        _column("learning rate", (Cell(number(r.learning_rate), r.learning_rate) for r in rounds)),
        _column("cost", (Cell(dollars(r.usd), r.usd) for r in rounds)),
        _column("skipped samples", (Cell(number(r.bad_samples), r.bad_samples) for r in rounds)),
        _column("attempt", (Cell(number(r.attempt), r.attempt) for r in rounds)),
    ]
    return [column for column in columns if _has_values(column)]


def _round_column(rounds: Sequence[RoundRecord]) -> Column:
    best = rounds[-1].best_round if rounds else None
    return Column("round", [Cell(f"{r.round}{' (best)' if r.round == best else ''}", r.round) for r in rounds])


def _column(title: str, cells: Iterator[Cell]) -> Column:
    return Column(title, list(cells))


def _metric_column(rounds: Sequence[RoundRecord], task: str, metric: str, title: str, *, strong: bool) -> Column:
    cells = [Cell(format_metric(metric, value), value) for value in metric_series(rounds, task, metric)]
    return Column(title, cells, strong)


def _has_values(column: Column) -> bool:
    if column.title == "skipped samples":
        return any(cell.value for cell in column.cells)
    return any(cell.value is not None for cell in column.cells)


def speed_figure(rounds: Sequence[RoundRecord]) -> str | None:
    """Images a second over rounds."""
    if not rounds:
        return None
    series = {"training": [record.images_per_s for record in rounds]}
    return figures.curves("speed", _numbers(rounds), series, ylabel="images / s", alt="Images per second over rounds")


def weights_figure(rounds: Sequence[RoundRecord]) -> str | None:
    """The weights of the tasks' losses over rounds; None if they are always 1."""
    tasks = list(dict.fromkeys(task for record in rounds for task in record.weights))
    series = {task: [record.weights.get(task) for record in rounds] for task in tasks}
    if all(value in {None, 1.0} for values in series.values() for value in values):
        return None
    alt = "Weight of each task's loss over rounds"
    return figures.curves("weights", _numbers(rounds), series, ylabel="loss weight", alt=alt)


def sharing_figure(rounds: Sequence[RoundRecord]) -> str | None:
    """The learned sharing coefficients over rounds, one row each; None if nothing is shared."""
    leaves = [dict(_coefficients(record.sharing)) for record in rounds]
    names = list(dict.fromkeys(name for found in leaves for name in found))
    if not names:
        return None
    values = [[found.get(name, 0.0) for found in leaves] for name in names]
    texts = [[f"{found[name]:.2f}" if name in found else "" for found in leaves] for name in names]
    return figures.heat_map(
        "sharing",
        [[min(1.0, abs(value)) for value in row] for row in values],
        rows=names,
        columns=_thinned([str(record.round) for record in rounds]),
        xlabel="round",
        ylabel="",
        alt="Learned sharing coefficients over rounds",
        texts=texts if len(rounds) <= _MAP_COUNTS else None,
    )


def _coefficients(sharing: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for stage, table in sharing.items():
        for receiver, row in table["coefficients"].items():
            for sender, value in row.items():
                yield f"stage {stage} {table['kind'].replace('_', '-')}: {receiver} ← {sender}", value


def _thinned(titles: list[str]) -> list[str]:
    """The titles, with some left blank if there are more than ``_MAP_COUNTS``."""
    every = -(-len(titles) // _MAP_COUNTS)
    return [title if index % every == 0 else "" for index, title in enumerate(titles)]


def _numbers(rounds: Sequence[RoundRecord]) -> list[int]:
    return [record.round for record in rounds]


# --- tasks -----------------------------------------------------------------------------------------------------------


def task_sections(rounds: Sequence[RoundRecord]) -> list[TaskSection]:
    """One section per task, in the order of ``TASKS``."""
    return [_task_section(rounds, task) for task in tasks_of(rounds)]


def _task_section(rounds: Sequence[RoundRecord], task: str) -> TaskSection:
    newest = rounds[-1]
    names = newest.classes.get(task, [])
    matrix = newest.confusion if task == "classification" else None
    drawn = matrix is not None and len(matrix) <= _MAP_CLASSES
    return TaskSection(
        task=task,
        losses=_loss_figure(rounds, task),
        metrics=_metric_figure(rounds, task),
        columns=_task_columns(rounds, task),
        class_columns=_class_columns(newest.per_class.get(task, {}), names),
        confusion_map=_confusion_map(matrix, names) if matrix and drawn else None,
        confusions=_largest_confusions(matrix, names) if matrix and not drawn else [],
    )


def _losses(rounds: Sequence[RoundRecord], task: str) -> dict[str, list[float | None]]:
    series = {
        "training": [record.train_losses.get(task) for record in rounds],
        "validation": [record.val_losses.get(task) for record in rounds],
    }
    return {title: values for title, values in series.items() if any(value is not None for value in values)}


def _loss_figure(rounds: Sequence[RoundRecord], task: str) -> str | None:
    series = _losses(rounds, task)
    if not series:
        return None
    known = [value for values in series.values() for value in values if value is not None]
    scale: figures.Scale = "log" if min(known) > 0 and max(known) > _LOG_RATIO * min(known) else "linear"
    alt = f"Loss of {task} over rounds"
    return figures.curves(f"{task}-loss", _numbers(rounds), series, ylabel="loss", alt=alt, scale=scale)


def _metric_figure(rounds: Sequence[RoundRecord], task: str) -> str | None:
    names = curve_names(rounds, task)
    drawn = {label(name, task): values for name in names if (values := _percentages(rounds, task, name))}
    bands = {
        label(name, task): (low, high)
        for name in names
        if (low := _percentages(rounds, task, f"{name}_low")) and (high := _percentages(rounds, task, f"{name}_high"))
    }
    if not drawn:
        return None
    alt = f"Metrics of {task} over rounds, in per cent" + ("; the band is the 95 % interval" if bands else "")
    return figures.curves(
        f"{task}-metrics", _numbers(rounds), drawn, ylabel="per cent", alt=alt, bands=bands, scale="share"
    )


def _percentages(rounds: Sequence[RoundRecord], task: str, metric: str) -> list[float | None]:
    """The metric in per cent; empty if it is not a fraction or has no value."""
    values = metric_series(rounds, task, metric)
    if not is_fraction(values) or all(value is None for value in values):
        return []
    return [None if value is None else 100 * value for value in values]


def _task_columns(rounds: Sequence[RoundRecord], task: str) -> list[Column]:
    columns = [_round_column(rounds)]
    for title, values in _losses(rounds, task).items():
        columns.append(Column(f"{title} loss", [Cell(number(value), value) for value in values]))
    headline = headline_metric(rounds, task)
    return columns + [
        _metric_column(rounds, task, name, label(name, task), strong=name == headline)
        for name in metric_names(rounds, task)
    ]


def _class_columns(per_class: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> list[Column]:
    """Columns of the class table. With more than ``_MAP_CLASSES`` classes, the weakest come first."""
    found = dict.fromkeys([*names, *(name for values in per_class.values() for name in values)])
    shown = [name for name in found if any(name in values for values in per_class.values())]
    if len(shown) > _MAP_CLASSES:
        first = next(iter(per_class.values()))
        shown.sort(key=lambda name: (value := first.get(name)) is None or value)
    if not shown:
        return []
    columns = [Column("class", [Cell(name, name) for name in shown])]
    return columns + [
        Column(label(metric), [Cell(format_metric(metric, values.get(name)), values.get(name)) for name in shown])
        for metric, values in per_class.items()
    ]


def _confusion_map(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    titles = _class_titles(matrix, names)
    return figures.heat_map(
        "confusion",
        [[count / max(1, sum(row)) for count in row] for row in matrix],
        rows=titles,
        columns=titles,
        xlabel="predicted class",
        ylabel="true class",
        alt="Confusion matrix: rows are true classes, columns predicted classes, depth is the share of the row",
        texts=[[str(count) if count else "" for count in row] for row in matrix]
        if len(matrix) <= _MAP_COUNTS
        else None,
    )


def _largest_confusions(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[Confusion]:
    titles = _class_titles(matrix, names)
    wrong = [
        Confusion(titles[i], titles[j], count, count / sum(row))
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(wrong, key=lambda confusion: -confusion.images)[:_LISTED_CONFUSIONS]


def _class_titles(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    return list(names) if len(names) == len(matrix) else [str(index) for index in range(len(matrix))]
