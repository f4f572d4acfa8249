"""Labels of the metrics, the headline metric of each task, and the format of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtl_cloud.report.formatting import number, percent
from mtl_cloud.runs.schema import BestRound, RoundRecord
from mtl_cloud.tasks import HEADLINE, TASKS

__all__ = [
    "Headline",
    "curve_names",
    "describe_best",
    "format_metric",
    "headline_metric",
    "headlines",
    "is_fraction",
    "label",
    "metric_names",
    "metric_series",
    "tasks_of",
]

_LABELS = {
    "top1": "top-1 accuracy",
    "top1_low": "top-1, 95 % low",
    "top1_high": "top-1, 95 % high",
    "top5": "top-5 accuracy",
    "recall_macro": "macro recall",
    "precision_macro": "macro precision",
    "map": "mAP",
    "map50_voc": "mAP@.5",
    "map50_voc07": "mAP@.5 (11-point)",
    "map50_coco": "mAP@.5 (COCO)",
    "map75": "mAP@.75",
    "recall50": "recall@.5",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "ap": "AP",
    "ap50_voc": "AP@.5",
    "ap50_voc07": "AP@.5 (11-point)",
    "iou": "IoU",
    "n": "samples",
}
_LABELS_OF_TASK = {("detection", "map"): "mAP@[.5:.95]"}
_COUNTS = frozenset({"n"})
_BOUNDS = ("_low", "_high")


class Headline(NamedTuple):
    """A task's headline metric: its value in the newest round and in the first round."""

    task: str
    metric: str
    first: float | None
    last: float | None


def label(metric: str, task: str = "") -> str:
    """The metric's label; underscores of unknown names are replaced by spaces."""
    return _LABELS_OF_TASK.get((task, metric)) or _LABELS.get(metric) or metric.replace("_", " ")


def tasks_of(rounds: Iterable[RoundRecord]) -> list[str]:
    """The run's tasks with any labelled sample, in the order of ``TASKS``, unknown ones last."""
    found = {task for record in rounds for task in record.metrics}
    found |= {
        task
        for record in rounds
        for task, loss in (*record.train_losses.items(), *record.val_losses.items())
        if loss is not None
    }
    return [task for task in TASKS if task in found] + sorted(found.difference(TASKS))


def metric_names(rounds: Iterable[RoundRecord], task: str) -> list[str]:
    """The task's metrics, headline first, then in the order in which they were recorded."""
    seen = dict.fromkeys(name for record in rounds for name in record.metrics.get(task, {}))
    return sorted(seen, key=lambda name: (task, name) not in HEADLINE.items())


def curve_names(rounds: Iterable[RoundRecord], task: str) -> list[str]:
    """The task's metrics without counts and interval bounds, which are not drawn as curves."""
    return [name for name in metric_names(rounds, task) if name not in _COUNTS and not name.endswith(_BOUNDS)]


def metric_series(rounds: Iterable[RoundRecord], task: str, metric: str) -> list[float | None]:
    return [record.metrics.get(task, {}).get(metric) for record in rounds]


def headline_metric(rounds: Sequence[RoundRecord], task: str) -> str | None:
    """The task's headline metric if it has a value, else the first metric with a value; None without metrics."""
    names = curve_names(rounds, task)
    valued = (name for name in names if any(value is not None for value in metric_series(rounds, task, name)))
    return next(valued, next(iter(names), None))


def headlines(rounds: Sequence[RoundRecord]) -> list[Headline]:
    """One for each task that has a metric."""
    chosen = [(task, headline_metric(rounds, task)) for task in tasks_of(rounds)]
    return [_headline(rounds, task, metric) for task, metric in chosen if metric is not None]


def _headline(rounds: Sequence[RoundRecord], task: str, metric: str) -> Headline:
    series = metric_series(rounds, task, metric)
    return Headline(task, metric, series[0], series[-1])


def is_fraction(values: Iterable[float | None]) -> bool:
    """Whether all known values are in 0..1, so that they can be shown as percentages."""
    return all(0 <= value <= 1 for value in values if value is not None)


def format_metric(metric: str, value: float | None) -> str:
    """Fractions as percentages; counts and values outside of 0..1 as plain numbers."""
    return number(value) if metric in _COUNTS or not is_fraction([value]) else percent(value)


def describe_best(best: BestRound) -> str:
    """``round 3, detection mAP@.5 41.2 %``."""
    if best.value is None:
        return f"round {best.round}"
    if best.metric is None:
        return f"round {best.round}, mean of the headline metrics {percent(best.value)}"
    task, _, name = best.metric.partition("/")
    value = number(best.value) if name == "loss" else format_metric(name, best.value)
    return f"round {best.round}, {task} {label(name, task)} {value}"
