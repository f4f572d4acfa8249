"""Interface of a task for the trainer: a loss, an evaluation after each round, and predictions to render."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch

__all__ = ["Evaluator", "LossTerm", "Outputs", "TaskHead", "TaskMetrics"]

Outputs: TypeAlias = dict[Task, Any]
"""Result of a network's ``forward`` for images [B, 3, S, S], float in 0..1:

* classification: Tensor [B, classes], logits.
* detection: tuple of three Tensors [B, 3, S/stride, S/stride, 5 + classes], raw logits (tx, ty, tw, th, objectness,
  classes), for strides 32, 16, 8 in this order; the middle axis runs over the scale's anchors, smallest first.
* segmentation: dict with ``out`` [B, classes, S, S] and, in training with an auxiliary head, ``aux`` of the same shape.
"""


@dataclass(frozen=True)
class LossTerm:
    """A loss as sum and count, so that several processes can use a common count: loss = total / max(1, count)."""

    total: Tensor
    """Scalar, float32, with gradient. If nothing is labelled it is 0, but still connected to the output's graph."""
    count: Tensor
    """Scalar, float32, no gradient: number of samples (or pixels) in the total."""


@dataclass(frozen=True)
class TaskMetrics:
    """Result of an evaluation. A metric that nothing can be computed for is None."""

    values: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Maps metric -> class name -> value."""
    confusion: list[list[int]] | None = None


class Evaluator(Protocol):
    """Accumulates one pass over the validation split. Picklable, so that evaluators of all processes can be merged."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch's labelled samples; the others are ignored."""
        ...

    def merge(self, other: Self) -> None:
        """Add another process's samples."""
        ...

    def compute(self) -> TaskMetrics: ...


class TaskHead(Protocol):
    """Loss, evaluation and prediction of one task of the job."""

    @property
    def name(self) -> Task: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def loss(self, output: Any, batch: Batch) -> LossTerm:
        """The unweighted loss of the batch's labelled samples."""
        ...

    def evaluator(self) -> Evaluator:
        """A new, empty evaluator."""
        ...

    def predict(self, output: Any) -> list[dict[str, Any]]:
        """The ``prediction`` entries of ``RoundSamples`` for each image of the batch, as JSON values:

        classification ``{"classes": [[name, score], ...]}``, best five first (multi-label: those over 0.5);
        detection ``{"boxes": [[name, score, x1, y1, x2, y2], ...]}``, after NMS, score over 0.25;
        segmentation ``{"mask": PNG in base64}``.
        """
        ...
