"""YOLOv3 anchors: darknet's nine, or anchors clustered from the boxes of a dataset.

The distance of two box sizes is 1 - IoU, both at the same centre (Redmon & Farhadi, YOLO9000, 2017): with the Euclidean
distance, large boxes would dominate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import Dataset
from mtl_cloud.errors import DatasetError

__all__ = ["ANCHORS", "Clustering", "Sizes", "box_sizes", "cluster_sizes", "mean_best_iou"]

Sizes: TypeAlias = npt.NDArray[np.float64]
"""[n, 2] width and height, pixels."""

ANCHORS: tuple[tuple[float, float], ...] = (
    (10, 13),
    (16, 30),
    (33, 23),
    (30, 61),
    (62, 45),
    (59, 119),
    (116, 90),
    (156, 198),
    (373, 326),
)
"""(width, height) of darknet's nine, smallest first. Source: ``anchors=`` of its ``cfg/yolov3.cfg``.

Pixels of the network's input, whatever its size: as in darknet, an anchor of 10 pixels is 10 pixels at 320 and at 608.
They were clustered on COCO at 416.
"""

_RESTARTS = 10
_MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Clustering:
    """Anchors, smallest area first, and the mean best IoU after the start and after each round of the k-means."""

    anchors: Sizes
    history: tuple[float, ...]

    @property
    def mean_iou(self) -> float:
        return self.history[-1]


def box_sizes(dataset: Dataset, image_size: int) -> Sizes:
    """Sizes of all boxes that detection is trained on, with images letterboxed to ``image_size`` pixels.

    Difficult boxes are left out, as in training. Raises ``DatasetError`` if a sample is bad, or the dataset labels no
    boxes.
    """
    if "detection" not in dataset.info.classes:
        raise DatasetError(
            f"{dataset.info.name} {dataset.info.split} labels no boxes", hint="name a dataset with detection, e.g. voc"
        )
    labelled = (dataset[i] for i in range(len(dataset)) if "detection" in dataset.labels(i))
    found = [np.zeros((0, 2))]
    for sample in labelled:
        if sample.detection is not None:
            xyxy = sample.detection.xyxy[~sample.detection.difficult].astype(np.float64)
            found.append((xyxy[:, 2:] - xyxy[:, :2]) * image_size / max(sample.shape))
    return np.concatenate(found)


def mean_best_iou(sizes: Sizes, anchors: Sizes) -> float:
    """The mean over ``sizes`` of the IoU with the best anchor."""
    return float(_iou(sizes, anchors).max(axis=1).mean())


def cluster_sizes(sizes: Sizes, k: int = 9, *, seed: int = 0) -> Clustering:
    """The best of ten k-means runs from k-means++ starts. The same ``sizes`` and ``seed`` give the same anchors.

    No round lowers the mean best IoU: a cluster's centre moves to the mean or the median of its sizes only if that
    raises their mean IoU.

    Raises
    ------
    DatasetError
        There are fewer than ``k`` distinct sizes.
    """
    different = len(np.unique(sizes, axis=0))
    if different < k:
        raise DatasetError(
            f"{k} anchors cannot be made of {different} different box sizes", hint="use more training images"
        )
    rng = np.random.default_rng(seed)
    return max((_k_means(sizes, _start(sizes, k, rng)) for _ in range(_RESTARTS)), key=lambda found: found.mean_iou)


def _iou(sizes: Sizes, anchors: Sizes) -> Sizes:
    """[n, k] the IoU of boxes with a common centre."""
    shared = np.minimum(sizes[:, None], anchors).prod(axis=2)
    iou: Sizes = shared / (sizes.prod(axis=1)[:, None] + anchors.prod(axis=1) - shared)
    return iou


def _start(sizes: Sizes, k: int, rng: np.random.Generator) -> Sizes:
    """k-means++ (Arthur & Vassilvitskii 2007): draws each centre with probability proportional to squared distance."""
    chosen = [sizes[rng.integers(len(sizes))]]
    while len(chosen) < k:
        chance = (1 - _iou(sizes, np.array(chosen)).max(axis=1)).clip(0) ** 2
        chosen.append(sizes[rng.choice(len(sizes), p=chance / chance.sum())])
    return np.array(chosen)


def _k_means(sizes: Sizes, anchors: Sizes) -> Clustering:
    history = [mean_best_iou(sizes, anchors)]
    for _ in range(_MAX_ROUNDS):
        owner = _iou(sizes, anchors).argmax(axis=1)
        anchors = np.array([_centre(sizes[owner == index], anchor) for index, anchor in enumerate(anchors)])
        history.append(mean_best_iou(sizes, anchors))
        if history[-1] <= history[-2]:
            break
    return Clustering(anchors[np.argsort(anchors.prod(axis=1), kind="stable")], tuple(history))


def _centre(members: Sizes, present: Sizes) -> Sizes:
    if not len(members):
        return present
    candidates = np.stack([present, members.mean(axis=0), np.median(members, axis=0)])
    best: Sizes = candidates[_iou(members, candidates).mean(axis=0).argmax()]
    return best
