"""The three tasks in their fixed order, their metrics, and the tasks of each network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

__all__ = ["HEADLINE", "METRICS", "NETWORK_TASKS", "TASKS", "Task", "mean_headline"]

Task: TypeAlias = Literal["classification", "detection", "segmentation"]
TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")

HEADLINE: dict[Task, str] = {"classification": "top1", "detection": "map50_voc", "segmentation": "miou"}
"""Task -> its headline metric."""

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("top1", "top5", "map", "recall_macro", "precision_macro"),
    "detection": ("map50_voc", "map50_voc07", "map50_coco", "map75", "map", "recall50"),
    "segmentation": ("miou", "pixel_accuracy", "mean_class_accuracy", "recall_macro"),
}
"""Task -> the metrics by which its best round may be chosen."""

NETWORK_TASKS: dict[str, tuple[Task, ...]] = {
    "mtl_net": TASKS,
    "mtl_lite": ("classification",),
    "vgg16": ("classification",),
    "alexnet": ("classification",),
    "yolov3": ("detection",),
    "fcn_resnet50": ("segmentation",),
}
"""Name of a network (``model.name``) -> the tasks that it has outputs for."""


def mean_headline(metrics: Mapping[str, Mapping[str, float | None]], tasks: Iterable[Task] = TASKS) -> float | None:
    """Mean of the headline metrics of ``tasks`` that are known; ``metrics`` are as in a ``RoundRecord``."""
    headlines = (metrics.get(task, {}).get(HEADLINE[task]) for task in tasks)
    known = [value for value in headlines if value is not None]
    return math.fsum(known) / len(known) if known else None
