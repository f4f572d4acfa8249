"""Names of the metrics, which of them speaks for a task, and how their values are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtl_cloud.records import RoundRecord
from mtl_cloud.report.formatting import number, percent
from mtl_cloud.tasks import TASKS

__all__ = [
    "Headline",
    "headline_metric",
    "headlines",
    "is_share",
    "label",
    "metric_names",
    "metric_series",
    "tasks_of",
    "written",
]

_LABELS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "accuracy": "accuracy",
    "recall_macro": "macro recall",
    "map": "mAP",
    "map50": "mAP@.5",
    "map50_11point": "mAP@.5 (VOC 11-point)",
    "map50_voc11": "mAP@.5 (VOC 11-point)",
    "map_coco": "mAP@[.5:.95]",
    "map50_95": "mAP@[.5:.95]",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "ap50": "AP@.5",
    "iou": "IoU",
    "ap": "AP",
}
_HEADLINES = {
    "classification": ("top1", "accuracy", "map", "recall_macro"),
    "detection": ("map50", "map50_11point", "map_coco"),
    "segmentation": ("miou", "pixel_accuracy"),
}
_COUNTS_AND_LOSSES = ("loss", "count", "images", "seconds")


class Headline(NamedTuple):
    """A task's one figure: its newest value and the value after the first round."""

    task: str
    metric: str
    first: float | None
    last: float | None


def label(metric: str) -> str:
    """The metric's name for people; unknown ones lose their underscores."""
    return _LABELS.get(metric, metric.replace("_", " "))


def tasks_of(rounds: Iterable[RoundRecord]) -> list[str]:
    """The run's tasks in their fixed order; unknown ones behind."""
    found = {task for record in rounds for task in (*record.train_losses, *record.val_losses, *record.metrics)}
    return [task for task in TASKS if task in found] + sorted(found.difference(TASKS))


def metric_names(rounds: Iterable[RoundRecord], task: str) -> list[str]:
    """The task's metrics, headline first, then in the order in which they were recorded."""
    seen = dict.fromkeys(name for record in rounds for name in record.metrics.get(task, {}))
    return sorted(seen, key=_HEADLINES.get(task, ())[:1].__contains__, reverse=True)


def metric_series(rounds: Iterable[RoundRecord], task: str, metric: str) -> list[float | None]:
    return [record.metrics.get(task, {}).get(metric) for record in rounds]


def headline_metric(rounds: Sequence[RoundRecord], task: str) -> str | None:
    """The first of the task's candidates that has a value; else its first metric; None when it has none."""
    names = metric_names(rounds, task)
    valued = [name for name in names if any(value is not None for value in metric_series(rounds, task, name))]
    candidates = [name for name in _HEADLINES.get(task, ()) if name in valued]
    return next(iter(candidates or valued or names), None)


def headlines(rounds: Sequence[RoundRecord]) -> list[Headline]:
    """One for each task that has a metric."""
    chosen = [(task, headline_metric(rounds, task)) for task in tasks_of(rounds)]
    return [_headline(rounds, task, metric) for task, metric in chosen if metric is not None]


def _headline(rounds: Sequence[RoundRecord], task: str, metric: str) -> Headline:
    series = metric_series(rounds, task, metric)
    return Headline(task, metric, series[0], series[-1])


def is_share(values: Iterable[float | None]) -> bool:
    """Whether all known values lie in 0..1, and so can be read as percentages."""
    return all(0 <= value <= 1 for value in values if value is not None)


def written(metric: str, value: float | None) -> str:
    """Shares as percentages; everything else, and whatever is named a loss or a count, as a plain number."""
    plain = any(word in metric for word in _COUNTS_AND_LOSSES) or not is_share([value])
    return number(value) if plain else percent(value)
