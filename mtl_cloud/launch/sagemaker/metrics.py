"""``MetricDefinitions``, by which SageMaker extracts metrics from the trainer's log lines."""

from __future__ import annotations

from mtl_cloud.json_types import Json
from mtl_cloud.names import SPEED_REGEX, loss_regex, metric_regex

__all__ = ["metric_definitions"]

_METRICS = {
    "classification": ("top1", "top5", "recall_macro"),
    "detection": ("map50_voc", "map", "recall50"),
    "segmentation": ("miou", "pixel_accuracy"),
}
"""Task -> the metrics to plot in SageMaker's console; the run record has all metrics."""


def metric_definitions() -> list[Json]:
    """Names and regular expressions for ``CreateTrainingJob``. Lines of other tasks or backends match none of them."""
    regexes = {f"{task}:{name}": metric_regex(task, name) for task, names in _METRICS.items() for name in names}
    regexes |= {f"{task}:loss": loss_regex(task) for task in _METRICS}
    regexes["images_per_s"] = SPEED_REGEX
    return [{"Name": name, "Regex": regex} for name, regex in regexes.items()]
