"""Image classification with one label per image (CIFAR-10, ImageNet) or a set of labels (VOC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks.base import Evaluator, LossTerm, TaskMetrics
from mtl_cloud.train.tasks.confusion import ConfusionMatrix
from mtl_cloud.train.tasks.statistics import mean_known, ratio, wilson_interval

__all__ = ["ClassificationHead", "MultiLabelEvaluator", "SingleLabelEvaluator"]

_LARGEST_CONFUSION = 200  # classes; a larger matrix is megabytes of JSON per round, and unreadable


class ClassificationHead:
    """Softmax cross-entropy over ``classes``; with ``multi_label``, a sigmoid for each class.

    The multi-label loss is the mean of the binary cross-entropy over all known (image, class) pairs.
    """

    name: Task = "classification"

    def __init__(self, classes: Sequence[str], *, multi_label: bool) -> None:
        self.classes = tuple(classes)
        self.multi_label = multi_label

    def loss(self, output: Tensor, batch: Batch) -> LossTerm:
        """``output``: [B, classes] logits. The count is that of images; multi-label: of known (image, class) pairs."""
        has = batch.has[self.name]
        if not self.multi_label:
            losses = F.cross_entropy(output.float(), batch.labels, reduction="none")
            return LossTerm(losses.where(has, 0).sum(), has.sum().float())
        known = (batch.labels >= 0) & has[:, None]
        losses = F.binary_cross_entropy_with_logits(output.float(), batch.labels.clamp(min=0), reduction="none")
        return LossTerm(losses.where(known, 0).sum(), known.sum().float())

    def evaluator(self) -> Evaluator:
        return MultiLabelEvaluator(self.classes) if self.multi_label else SingleLabelEvaluator(self.classes)

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        scores = output.float().sigmoid() if self.multi_label else output.float().softmax(1)
        best = scores.topk(len(self.classes) if self.multi_label else min(5, len(self.classes)), dim=1)
        return [
            {"classes": [[self.classes[c], p] for c, p in zip(*row, strict=True) if p > 0.5 or not self.multi_label]}
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class SingleLabelEvaluator:
    """``top1`` with its 95 % Wilson interval over ``n`` images, ``top5``, and recall of each class.

    ``top5`` is None for five classes or fewer, where it is always 1. ``recall_macro`` is the mean over the classes
    that have a sample. There is no confusion matrix for more than 200 classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.confusion = ConfusionMatrix(len(self.classes))
        self.top5_hits = torch.zeros((), dtype=torch.int64)

    def update(self, output: Tensor, batch: Batch) -> None:
        has = batch.has["classification"]
        ranked = output.topk(min(5, len(self.classes)), dim=1).indices
        self.confusion.update(batch.labels, ranked[:, 0], has)
        self.top5_hits = self.top5_hits.to(has.device) + ((ranked == batch.labels[:, None]).any(1) & has).sum()

    def merge(self, other: SingleLabelEvaluator) -> None:
        self.confusion.merge(other.confusion)
        self.top5_hits = self.top5_hits + other.top5_hits.to(self.top5_hits.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "top5_hits": self.top5_hits.cpu()}

    def compute(self) -> TaskMetrics:
        counts, recall = self.confusion.counts, self.confusion.recall()
        hits, n = int(counts.trace()), int(counts.sum())
        values = {
            "top1": ratio(hits, n),
            "top5": ratio(int(self.top5_hits), n) if len(self.classes) > 5 else None,
            "recall_macro": mean_known(recall),
            **_interval(hits, n),
        }
        per_class = {"recall": dict(zip(self.classes, recall, strict=True))}
        return TaskMetrics(values, per_class, counts.tolist() if len(self.classes) <= _LARGEST_CONFUSION else None)


class MultiLabelEvaluator:
    """Metrics for sets of labels. Unknown (image, class) pairs are ignored.

    ``top1`` is the fraction of images whose highest-scored known class is true. It leaves out images without a true
    class; ``n`` and the 95 % Wilson interval are of the others. For ``recall_macro`` and ``precision_macro`` a class is
    predicted if its probability is over 0.5; they average over the classes with a true, or a predicted, image. ``map``
    is the mean over classes of average precision without interpolation, as scikit-learn defines it. The evaluator
    stores 5 bytes for each image and class.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.logits: list[Tensor] = []
        """[B, classes] float32 of each batch, on the device."""
        self.labels: list[Tensor] = []
        """[B, classes] int8 of each batch: 1 present, 0 absent, -1 unknown or unlabelled."""

    def update(self, output: Tensor, batch: Batch) -> None:
        self.logits.append(output.detach().float())
        self.labels.append(batch.labels.where(batch.has["classification"][:, None], -1).to(torch.int8))

    def merge(self, other: MultiLabelEvaluator) -> None:
        self.logits += other.logits
        self.labels += other.labels

    def __getstate__(self) -> dict[str, Any]:
        return {"classes": self.classes, "logits": [self._logits()], "labels": [self._labels()]}

    def _logits(self) -> Tensor:
        return torch.cat([torch.zeros(0, len(self.classes)), *(logits.cpu() for logits in self.logits)])

    def _labels(self) -> Tensor:
        empty = torch.zeros(0, len(self.classes), dtype=torch.int8)
        return torch.cat([empty, *(labels.cpu() for labels in self.labels)])

    def compute(self) -> TaskMetrics:
        logits, labels = self._logits(), self._labels()
        true, known, predicted = labels == 1, labels >= 0, logits > 0
        recall = _shares(true & predicted, true)
        precision = _shares(true & predicted, known & predicted)
        average_precision = _average_precisions(logits, labels)
        best = logits.where(known, -torch.inf).argmax(1, keepdim=True)
        hits, n = int(true.gather(1, best).sum()), int(true.any(1).sum())
        values = {
            "top1": ratio(hits, n),
            "map": mean_known(average_precision),
            "recall_macro": mean_known(recall),
            "precision_macro": mean_known(precision),
            **_interval(hits, n),
        }
        columns = {"recall": recall, "precision": precision, "ap": average_precision}
        return TaskMetrics(values, {name: dict(zip(self.classes, c, strict=True)) for name, c in columns.items()})


def _interval(hits: int, n: int) -> dict[str, float | None]:
    low, high = wilson_interval(hits, n)
    return {"top1_low": low, "top1_high": high, "n": float(n)}


def _shares(parts: Tensor, wholes: Tensor) -> list[float | None]:
    """Ratio of the counts of two masks [N, classes] for each class."""
    return [ratio(p, w) for p, w in zip(parts.sum(0).tolist(), wholes.sum(0).tolist(), strict=True)]


def _average_precisions(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Average precision of each class over the images where it is known; None without a true image."""
    from torchmetrics.functional.classification import binary_average_precision

    return [
        float(binary_average_precision(score[truth >= 0].double().sigmoid(), truth[truth >= 0].long()))
        if 1 in truth
        else None
        for score, truth in zip(logits.unbind(1), labels.unbind(1), strict=True)
    ]
