"""The tasks. ``base`` defines their interface; ``build_heads`` builds those of a job."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_cloud.jobspec.job import ModelSpec
from mtl_cloud.tasks import NETWORK_TASKS, TASKS, Task
from mtl_cloud.train.nets.anchors import ANCHORS
from mtl_cloud.train.tasks.base import TaskHead
from mtl_cloud.train.tasks.classification import ClassificationHead
from mtl_cloud.train.tasks.detection import DetectionHead
from mtl_cloud.train.tasks.segmentation import SegmentationHead

__all__ = ["ClassificationHead", "DetectionHead", "SegmentationHead", "build_heads"]


def build_heads(
    model: ModelSpec, classes: Mapping[Task, tuple[str, ...]], *, multi_label: bool
) -> dict[Task, TaskHead]:
    """Heads of the tasks that ``model`` trains and ``classes`` names, in the order of ``TASKS``."""
    wanted = model.tasks or NETWORK_TASKS[model.name]
    return {
        task: _head(task, model, classes[task], multi_label) for task in TASKS if task in wanted and task in classes
    }


def _head(task: Task, model: ModelSpec, classes: tuple[str, ...], multi_label: bool) -> TaskHead:
    match task:
        case "classification":
            return ClassificationHead(classes, multi_label=multi_label)
        case "detection":
            return DetectionHead(
                classes, model.anchors or ANCHORS, ignore_threshold=model.ignore_threshold, box_loss=model.box_loss
            )
        case "segmentation":
            return SegmentationHead(classes)
