"""The three tasks, by name and in their fixed order, and which of them each network can learn."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["NETWORK_TASKS", "TASKS", "Task"]

Task: TypeAlias = Literal["classification", "detection", "segmentation"]
TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")

NETWORK_TASKS: dict[str, tuple[Task, ...]] = {
    "mtl_net": TASKS,
    "mtl_lite": ("classification",),
    "vgg16": ("classification",),
    "alexnet": ("classification",),
    "yolov3": ("detection",),
    "fcn_resnet50": ("segmentation",),
}
"""Name of a network (``model.name``) -> the tasks that it has outputs for."""
