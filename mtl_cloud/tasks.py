"""The three tasks, by name and in their fixed order."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["TASKS", "Task"]

Task: TypeAlias = Literal["classification", "detection", "segmentation"]
TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")
