"""YOLOv3's loss, as darknet's ``src/yolo_layer.c`` defines it by its gradient.

Darknet writes the negative gradient at the logits directly; this is the loss whose gradient that is. Everything is one
sum. For each object, the prediction of its centre's cell with the best of all nine anchors (by IoU of width and
height) is taught: binary cross-entropy for x, y, objectness and classes, half the squared error for log width and
height, with x, y, w, h scaled by 2 - area (relative to the image). Every other prediction is taught "no object",
except where its box overlaps some object by more than the ignore threshold. Of two objects with the same cell and
anchor, the later one is taught; the classes of both are.

Boxes marked difficult take no part at all, as darknet's ``scripts/voc_label.py`` leaves them out of the labels: they
neither teach nor excuse a prediction. Nor do boxes under a thousandth of the image's side (``src/data.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks.boxes import ciou_loss, giou_loss, pair_iou, sides
from mtl_cloud.train.tasks.yolo_grid import YoloGrid, decode

__all__ = ["BoxLoss", "yolo_loss"]

BoxLoss: TypeAlias = Literal["darknet", "giou", "ciou"]

_SMALLEST_SIDE = 0.001  # of the image's side


@dataclass(frozen=True)
class _Assignment:
    """Which prediction each of the batch's M boxes teaches."""

    valid: Tensor
    """[M] bool: the box is trained on."""
    slot: Tensor
    """[M] int64: its prediction's index among the batch's B * P."""
    owner: Tensor
    """[M] bool: valid, and no later valid box has the same slot."""
    same: Tensor
    """[M, M] bool: both valid, with the same slot."""


def yolo_loss(logits: Tensor, batch: Batch, grid: YoloGrid, *, ignore_threshold: float, box_loss: BoxLoss) -> Tensor:
    """The sum over the batch, a scalar.

    ``logits``: [B, P, 5 + classes], flattened as ``grid`` says. Images without detection labels contribute exactly
    nothing. ``giou`` and ``ciou`` put (2 - area) * (1 - GIoU or CIoU) of the decoded box in the place of the x, y, w
    and h terms. Does not loop over boxes, nor wait for the device; memory is of the order M * P.
    """
    boxes = batch.boxes.to(logits.dtype)
    found = _assign(boxes, batch, grid, predictions=logits.shape[1])
    taught = logits.flatten(0, 1)[found.slot]
    box_terms = _box_terms(taught, boxes, grid.at(found.slot % logits.shape[1]), box_loss)
    scale = 2 - sides(boxes).prod(1) / grid.size**2
    positive = scale * box_terms + F.softplus(-taught[:, 4]) + _class_terms(taught, batch.box_class, found)
    background = _background(decode(logits.detach(), grid), boxes, batch, found, ignore_threshold)
    return positive.where(found.owner, 0).sum() + F.softplus(logits[..., 4]).where(background, 0).sum()


def _assign(boxes: Tensor, batch: Batch, grid: YoloGrid, *, predictions: int) -> _Assignment:
    extent = sides(boxes)
    valid = (
        batch.has["detection"][batch.box_image] & ~batch.box_difficult & (extent >= _SMALLEST_SIDE * grid.size).all(1)
    )
    anchor = _side_iou(extent, grid.anchors.to(boxes.dtype)).argmax(1)
    stride = grid.anchor_stride[anchor]
    cells = grid.size / stride
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride[:, None]).floor().unbind(1)
    last = cells - 1  # a centre on the very edge belongs to the last cell
    cell = row.clamp(min=0).minimum(last) * cells + column.clamp(min=0).minimum(last)
    slot = batch.box_image * predictions + grid.anchor_offset[anchor] + cell.long()
    same = (slot[:, None] == slot) & valid[:, None] & valid
    return _Assignment(valid, slot, valid & ~same.triu(1).any(1), same)


def _side_iou(extent: Tensor, anchors: Tensor) -> Tensor:
    """[M, 9] IoU of boxes [M, 2] and anchors [9, 2] that share their centre."""
    shared = torch.minimum(extent[:, None], anchors).prod(2)
    return shared / (extent.prod(1)[:, None] + anchors.prod(1) - shared)


def _box_terms(taught: Tensor, boxes: Tensor, grid: YoloGrid, kind: BoxLoss) -> Tensor:
    """[M] for the taught logits [M, 5 + classes], their boxes [M, 4] and their places in the grid."""
    if kind == "darknet":
        return _darknet_box_terms(taught, boxes, grid)
    loss = giou_loss if kind == "giou" else ciou_loss
    return loss(decode(taught, grid), boxes)


def _darknet_box_terms(taught: Tensor, boxes: Tensor, grid: YoloGrid) -> Tensor:
    offset = (boxes[:, :2] + boxes[:, 2:]) / 2 / grid.stride - grid.cell
    tiny = torch.finfo(boxes.dtype).tiny  # boxes that are not valid may have no area; their terms must stay finite
    log_scale = (sides(boxes) / grid.anchor).clamp(min=tiny).log()
    place = F.binary_cross_entropy_with_logits(taught[:, :2], offset, reduction="none")
    return place.sum(1) + ((taught[:, 2:4] - log_scale) ** 2).sum(1) / 2


def _class_terms(taught: Tensor, classes: Tensor, found: _Assignment) -> Tensor:
    """[M]: against the classes of all boxes with the same slot."""
    wanted = classes[:, None] == torch.arange(taught.shape[1] - 5, device=classes.device)
    target = (found.same.to(taught.dtype) @ wanted.to(taught.dtype)).clamp(max=1)
    return F.binary_cross_entropy_with_logits(taught[:, 5:], target, reduction="none").sum(1)


def _background(predicted: Tensor, boxes: Tensor, batch: Batch, found: _Assignment, ignore_threshold: float) -> Tensor:
    """[B, P] bool: the predictions, of boxes [B, P, 4], that are taught "no object"."""
    overlaps = pair_iou(boxes[:, None], predicted[batch.box_image]) > ignore_threshold
    excused = predicted.new_zeros(predicted.shape[:2])
    excused.index_add_(0, batch.box_image, (overlaps & found.valid[:, None]).to(excused.dtype))
    excused.view(-1).index_add_(0, found.slot, found.valid.to(excused.dtype))
    return batch.has["detection"][:, None] & (excused == 0)
