"""Object detection with YOLOv3: loss, boxes after non-maximum suppression (NMS), and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.nets.anchors import ANCHORS
from mtl_cloud.train.tasks.average_precision import ImageDetections, coco_metrics, voc_precision
from mtl_cloud.train.tasks.base import LossTerm, TaskMetrics
from mtl_cloud.train.tasks.statistics import mean_known
from mtl_cloud.train.tasks.yolo_grid import Anchors, decode, flatten, grid_of
from mtl_cloud.train.tasks.yolo_loss import BoxLoss, yolo_loss

__all__ = ["DetectionEvaluator", "DetectionHead", "detect"]

_EVALUATION_CONFIDENCE = 0.005  # as in darknet's examples/detector.c, like the IoU of the NMS
_NMS_IOU = 0.45
_SHOWN_CONFIDENCE = 0.25
_CANDIDATES = 2000  # per image, before NMS: an untrained network has a hundred times as many over 0.005
_DETECTIONS = 100  # per image, after NMS: COCO's limit


class DetectionHead:
    """YOLOv3 over ``classes``. ``anchors``: nine, in pixels of inputs of any size, smallest first.

    ``ignore_threshold``: IoU above which a prediction has no "no object" loss (darknet: 0.5 for VOC, 0.7 for COCO).
    """

    name: Task = "detection"

    def __init__(
        self,
        classes: Sequence[str],
        anchors: Anchors = ANCHORS,
        *,
        ignore_threshold: float = 0.5,
        box_loss: BoxLoss = "darknet",
    ) -> None:
        self.classes = tuple(classes)
        self.anchors = anchors
        self.ignore_threshold = ignore_threshold
        self.box_loss: BoxLoss = box_loss

    def loss(self, output: Sequence[Tensor], batch: Batch) -> LossTerm:
        """``output``: the three scales. The count is that of labelled images, as darknet divides by the batch."""
        total = yolo_loss(
            flatten(output),
            batch,
            grid_of(output, self.anchors),
            ignore_threshold=self.ignore_threshold,
            box_loss=self.box_loss,
        )
        return LossTerm(total, batch.has[self.name].sum().float())

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self.classes, self.anchors)

    def predict(self, output: Sequence[Tensor]) -> list[dict[str, Any]]:
        found = detect(output, self.anchors, confidence=_SHOWN_CONFIDENCE)
        return [
            {"boxes": [[self.classes[int(c)], s, *b] for b, s, c in zip(*map(Tensor.tolist, image), strict=True)]}
            for image in found
        ]


@torch.no_grad()
def detect(output: Sequence[Tensor], anchors: Anchors, *, confidence: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each image's boxes [D, 4] in pixels within the image, decreasing scores [D], and classes [D]; CPU tensors.

    A prediction's score for a class is objectness * class probability; it must be over ``confidence``. NMS is per class
    with an IoU of 0.45. It takes at most 2,000 candidates of an image and keeps at most 100.
    """
    logits, grid = flatten(output), grid_of(output, anchors)
    boxes = decode(logits, grid)
    classes = logits.shape[2] - 5
    scores = (logits[..., 4:5].sigmoid() * logits[..., 5:].sigmoid()).flatten(1)
    best = scores.topk(min(_CANDIDATES, scores.shape[1]), dim=1)
    return [
        _suppress(image_boxes[index // classes], image_scores, index % classes, confidence=confidence, size=grid.size)
        for image_boxes, image_scores, index in zip(boxes, best.values, best.indices, strict=True)
    ]


def _suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, confidence: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    from torchvision.ops import batched_nms

    confident = scores > confidence
    boxes, scores, classes = boxes[confident], scores[confident], classes[confident]
    kept = batched_nms(boxes, scores, classes, _NMS_IOU)[:_DETECTIONS]
    return boxes[kept].clamp(0, size).cpu(), scores[kept].cpu(), classes[kept].cpu()


class DetectionEvaluator:
    """Mean average precision of detections with a confidence over 0.005.

    ``map50_voc`` (VOC 2010 and later), ``map50_voc07`` (11 points) and ``recall50`` (mean over classes of the fraction
    of objects found at IoU 0.5) follow the devkit's rules; ``map``, ``map50_coco`` and ``map75`` follow COCO's.
    Difficult objects are ignored. Means are over the classes with an object. Stores at most 100 detections per image,
    about 3 KB. The order of images does not matter, because they are sorted by key.
    """

    def __init__(self, classes: Sequence[str], anchors: Anchors) -> None:
        self.classes = tuple(classes)
        self.anchors = anchors
        self.images: list[ImageDetections] = []

    def update(self, output: Sequence[Tensor], batch: Batch) -> None:
        found = detect(output, self.anchors, confidence=_EVALUATION_CONFIDENCE)
        truth = [t.cpu() for t in (batch.box_image, batch.boxes, batch.box_class, batch.box_difficult)]
        for i, has in enumerate(batch.has["detection"].tolist()):
            if has:
                mine = truth[0] == i
                self.images.append(ImageDetections(batch.keys[i], *found[i], *(t[mine] for t in truth[1:])))

    def merge(self, other: DetectionEvaluator) -> None:
        self.images += other.images

    def compute(self) -> TaskMetrics:
        images = sorted(self.images, key=lambda image: image.key)
        found = voc_precision(images, classes=len(self.classes))
        columns = {
            "ap50_voc": [c.ap for c in found],
            "ap50_voc07": [c.ap_11_point for c in found],
            "recall50": [c.recall for c in found],
        }
        values = {
            "map50_voc": mean_known(columns["ap50_voc"]),
            "map50_voc07": mean_known(columns["ap50_voc07"]),
            **coco_metrics(images),
            "recall50": mean_known(columns["recall50"]),
        }
        return TaskMetrics(values, {name: dict(zip(self.classes, c, strict=True)) for name, c in columns.items()})
