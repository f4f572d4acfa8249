"""A confusion matrix that is accumulated on the predictions' device and evaluated on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_cloud.train.tasks.statistics import ratio

__all__ = ["ConfusionMatrix"]


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over ``size`` classes. Updates do not wait for the device."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts = torch.zeros(size, size, dtype=torch.int64)
        """[size, size] int64, rows: truth, columns: prediction; on the device of the updates."""

    def update(self, truth: Tensor, prediction: Tensor, counted: Tensor) -> None:
        """Count the pairs where ``counted`` is true. All have one shape; elsewhere ``truth`` may have any value."""
        self.counts = self.counts.to(truth.device)
        pair = (truth.long() * self.size + prediction).where(counted, 0)
        # Not bincount, which reads the largest index back from the device.
        self.counts.view(-1).index_add_(0, pair.flatten(), counted.flatten().long())

    def merge(self, other: ConfusionMatrix) -> None:
        self.counts = self.counts + other.counts.to(self.counts.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "counts": self.counts.cpu()}

    def accuracy(self) -> float | None:
        return ratio(int(self.counts.trace()), int(self.counts.sum()))

    def recall(self) -> list[float | None]:
        """Recall of each class; None for a class without a true sample."""
        return _ratios(self.counts.diagonal(), self.counts.sum(1))

    def iou(self) -> list[float | None]:
        """Intersection over union of each class; None for a class in neither truth nor prediction."""
        hits = self.counts.diagonal()
        return _ratios(hits, self.counts.sum(0) + self.counts.sum(1) - hits)


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [ratio(part, whole) for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]
