"""Semantic segmentation: a class for every pixel. Mask value 255 marks unlabelled pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks.base import LossTerm, TaskMetrics
from mtl_cloud.train.tasks.confusion import ConfusionMatrix
from mtl_cloud.train.tasks.statistics import mean_known

__all__ = ["SegmentationEvaluator", "SegmentationHead", "encode_mask"]

_AUX_WEIGHT = 0.5  # torchvision's references/segmentation


class SegmentationHead:
    """Pixel-wise cross-entropy over ``classes`` (background is class 0), plus half that of the auxiliary output."""

    name: Task = "segmentation"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def loss(self, output: Mapping[str, Tensor], batch: Batch) -> LossTerm:
        """``output``: ``out`` and optionally ``aux``, logits [B, classes, S, S]. The count is of labelled pixels."""
        target = _labelled(batch)
        total = _cross_entropy(output["out"], target)
        if "aux" in output:
            total = total + _AUX_WEIGHT * _cross_entropy(output["aux"], target)
        return LossTerm(total, (target != IGNORE).sum().float())

    def evaluator(self) -> SegmentationEvaluator:
        return SegmentationEvaluator(self.classes)

    def predict(self, output: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return [{"mask": encode_mask(mask)} for mask in output["out"].argmax(1).to(torch.uint8).cpu()]


class SegmentationEvaluator:
    """``miou`` over the classes in truth or prediction, ``pixel_accuracy``, ``mean_class_accuracy``.

    The last is the mean of pixel recall over classes. It is also reported as ``recall_macro``, which all tasks have.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.confusion = ConfusionMatrix(len(self.classes))

    def update(self, output: Mapping[str, Tensor], batch: Batch) -> None:
        target = _labelled(batch)
        self.confusion.update(target, output["out"].argmax(1), target != IGNORE)

    def merge(self, other: SegmentationEvaluator) -> None:
        self.confusion.merge(other.confusion)

    def compute(self) -> TaskMetrics:
        iou, recall = self.confusion.iou(), self.confusion.recall()
        values = {
            "miou": mean_known(iou),
            "pixel_accuracy": self.confusion.accuracy(),
            "mean_class_accuracy": mean_known(recall),
            "recall_macro": mean_known(recall),
        }
        columns = {"iou": iou, "recall": recall}
        return TaskMetrics(values, {name: dict(zip(self.classes, c, strict=True)) for name, c in columns.items()})


def encode_mask(mask: Tensor) -> str:
    """An [H, W] uint8 tensor of class indices as 8-bit PNG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask.numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _labelled(batch: Batch) -> Tensor:
    """Masks [B, S, S] int64; those of samples without a mask are ``IGNORE`` everywhere."""
    return batch.masks.long().where(batch.has["segmentation"][:, None, None], IGNORE)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    # Not reduction="sum", which adds atomically on GPUs, in a different order each time.
    return F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none").sum()
