"""What the trainer asks of a task: a loss, an evaluation after each round, and predictions to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch

__all__ = ["Evaluator", "LossTerm", "Outputs", "TaskHead", "TaskMetrics"]

Outputs: TypeAlias = dict[Task, Any]
"""What a network's forward returns, for images [B, 3, S, S] float in 0..1:

* classification: Tensor [B, classes], logits.
* detection: tuple of three Tensors [B, 3, S/stride, S/stride, 5 + classes], raw logits (tx, ty, tw, th, objectness,
  classes), for strides 32, 16, 8 in this order; the middle axis runs over the scale's anchors, smallest first.
* segmentation: dict with ``out`` [B, classes, S, S] and, in training with an auxiliary head, ``aux`` of the same shape.
"""


@dataclass(frozen=True)
class LossTerm:
    """A loss as sum and count, so that several processes can share one denominator: loss = total / max(1, count)."""

    total: Tensor
    """Scalar, float32, with gradient. Zero, but connected to the output, when nothing is labelled."""
    count: Tensor
    """Scalar, float32, no gradient: how many samples (or pixels) the total sums over."""


@dataclass(frozen=True)
class TaskMetrics:
    """An evaluation's outcome; None where a metric has nothing to be computed from."""

    values: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """metric -> class name -> value"""
    confusion: list[list[int]] | None = None


class Evaluator(Protocol):
    """Accumulates one pass over the validation split. Picklable: other processes' evaluators are merged into one."""

    def update(self, output: Any, batch: Batch) -> None:
        """Count a batch's labelled samples; the others are passed over."""
        ...

    def merge(self, other: Self) -> None:
        """Add what another process has seen."""
        ...

    def compute(self) -> TaskMetrics: ...


class TaskHead(Protocol):
    """One task of the job."""

    @property
    def name(self) -> Task: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def loss(self, output: Any, batch: Batch) -> LossTerm:
        """The unweighted loss of the batch's labelled samples."""
        ...

    def evaluator(self) -> Evaluator:
        """A fresh, empty one."""
        ...

    def predict(self, output: Any) -> list[dict[str, Any]]:
        """For each image of the batch, the JSON-ready ``prediction`` entries of ``RoundSamples``:

        classification ``{"classes": [[name, score], ...]}``, best five first (multi-label: those over 0.5);
        detection ``{"boxes": [[name, score, x1, y1, x2, y2], ...]}``, after NMS, score over 0.25;
        segmentation ``{"mask": PNG in base64}``.
        """
        ...
