"""Average precision as the PASCAL VOC devkit computes it (``VOCevaldet.m``), and COCO's through torchmetrics.

VOC: the detections of a class in all images are taken by decreasing score. Each is matched with the object of its class
and image that it overlaps most, if the IoU is at least the threshold. The first match of an object is a true positive;
later ones are false positives, even if another object that they overlap less is not matched yet. Matches of difficult
objects do not count, and difficult objects do not count for recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl_cloud.train.tasks.statistics import ratio

__all__ = ["ClassPrecision", "ImageDetections", "coco_metrics", "voc_precision"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageDetections:
    """One image's detections and ground truth: CPU tensors, boxes as left, top, right, bottom."""

    key: str
    boxes: Tensor
    """[D, 4] float32"""
    scores: Tensor
    """[D] float32"""
    classes: Tensor
    """[D] int64"""
    true_boxes: Tensor
    """[T, 4] float32"""
    true_classes: Tensor
    """[T] int64"""
    difficult: Tensor
    """[T] bool"""


@dataclass(frozen=True)
class ClassPrecision:
    """Average precision and recall of one class; None if the class has no object that counts."""

    ap: float | None
    """Area under the precision-recall curve, precision made monotone: VOC 2010 and later."""
    ap_11_point: float | None
    """Mean of the interpolated precision at recall 0, 0.1, ..., 1: VOC 2007."""
    recall: float | None
    """Fraction of the objects that have a true positive."""


def voc_precision(images: Sequence[ImageDetections], *, classes: int, threshold: float = 0.5) -> list[ClassPrecision]:
    """Average precision of each class at IoU ``threshold``. Equal scores keep the order of ``images``."""
    if not images:
        return [_precision(np.empty(0, bool), 0)] * classes
    matches, truths = _matches(images, threshold)
    scores, found = _joined(i.scores for i in images), _joined(i.classes for i in images)
    true_classes, difficult = _joined(i.true_classes for i in images), _joined(i.difficult for i in images)
    order = np.argsort(-scores, kind="stable")
    matches, found = matches[order], found[order]
    counts = ~np.append(difficult, False)[matches]  # -1, no match, is a false positive and counts
    hits = _first_matches(matches, truths)
    return [
        _precision(hits[(found == c) & counts], int(((true_classes == c) & ~difficult).sum())) for c in range(classes)
    ]


def _joined(parts: Iterable[Tensor]) -> Array:
    joined: Array = torch.cat(list(parts)).numpy()
    return joined


def _matches(images: Sequence[ImageDetections], threshold: float) -> tuple[Array, int]:
    """Index of each detection's object, or -1 without a match; and the number of objects."""
    matches, truths = [], 0
    for image in images:
        matches.append(_image_matches(image, threshold, truths))
        truths += len(image.true_boxes)
    return np.concatenate(matches), truths


def _image_matches(image: ImageDetections, threshold: float, first: int) -> Array:
    from torchvision.ops import box_iou

    if not len(image.true_boxes):
        return np.full(len(image.boxes), -1)
    iou = box_iou(image.boxes.double(), image.true_boxes.double())
    overlap, best = iou.where(image.classes[:, None] == image.true_classes, -1).max(1)
    matches: Array = torch.where(overlap >= threshold, best + first, -1).numpy()
    return matches


def _first_matches(matches: Array, truths: int) -> Array:
    """[D] bool: whether the detection is the first match of its object."""
    first = np.full(truths + 1, -1)
    first[matches[::-1]] = np.arange(len(matches))[::-1]  # later writes, of earlier matches, win
    is_first: Array = first[matches] == np.arange(len(matches))
    return is_first & (matches >= 0)


def _precision(hits: Array, positives: int) -> ClassPrecision:
    """``hits``: whether each detection that counts is a true positive, by decreasing score."""
    if not positives:
        return ClassPrecision(None, None, None)
    found = hits.cumsum()
    precision = found / np.arange(1, len(hits) + 1)
    best_from = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    # In floats, like the evaluators behind published figures: there, a recall of 6 / 10 is below linspace's 0.6.
    at_recall = np.searchsorted(found / positives, np.linspace(0, 1, 11))
    return ClassPrecision(
        ap=float(best_from[:-1][hits].sum() / positives),
        ap_11_point=float(best_from[at_recall].mean()),
        recall=ratio(int(hits.sum()), positives),
    )


def coco_metrics(images: Sequence[ImageDetections]) -> dict[str, float | None]:
    """COCO's 101-point ``map`` (IoU 0.5 to 0.95), ``map50_coco`` and ``map75``. Difficult objects count as crowds."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    predictions = [{"boxes": i.boxes, "scores": i.scores, "labels": i.classes} for i in images]
    truths = [{"boxes": i.true_boxes, "labels": i.true_classes, "iscrowd": i.difficult.long()} for i in images]
    metric.update(predictions, truths)
    values = metric.compute()
    names = {"map": "map", "map50_coco": "map_50", "map75": "map_75"}
    # COCO gives -1 if there is no object.
    return {ours: _or_none(float(values[theirs])) for ours, theirs in names.items()}


def _or_none(value: float) -> float | None:
    return value if value >= 0 else None
