"""YOLOv3's loss, as darknet's ``src/yolo_layer.c`` defines it by its gradient.

Darknet computes the negative gradient at the logits directly; this is the loss with that gradient. It is one sum. Each
object is matched with the prediction in its centre's cell that has the best of all nine anchors (by IoU of width and
height). A matched prediction has binary cross-entropy for x, y, objectness and classes, and half the squared error for
log width and height; x, y, w, h are scaled by 2 - area (relative to the image). Every other prediction has the "no
object" loss, unless its box overlaps an object by more than the ignore threshold. If two objects have the same cell and
anchor, the later one gives the box, and both give classes.

Boxes marked difficult have no effect, as darknet's ``scripts/voc_label.py`` leaves them out of the labels: they are not
matched, and predictions that overlap them are not ignored. The same holds for boxes with a side under a thousandth of
the image's (``src/data.c``).
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
    """The prediction that is matched with each of the batch's M boxes."""

    valid: Tensor
    """[M] bool: the box takes part in training."""
    slot: Tensor
    """[M] int64: index of its prediction among the batch's B * P."""
    is_target: Tensor
    """[M] bool: the box is valid, and no later valid box has the same slot."""
    same_slot: Tensor
    """[M, M] bool: both boxes are valid and have the same slot."""


def yolo_loss(logits: Tensor, batch: Batch, grid: YoloGrid, *, ignore_threshold: float, box_loss: BoxLoss) -> Tensor:
    """The sum over the batch, a scalar.

    ``logits``: [B, P, 5 + classes], in the order of ``grid``. Images without detection labels contribute exactly 0.
    ``giou`` and ``ciou`` replace the x, y, w and h terms by (2 - area) * (1 - GIoU or CIoU) of the decoded box. Does
    not loop over boxes or wait for the device; memory is of the order M * P.
    """
    boxes = batch.boxes.to(logits.dtype)
    assignment = _assign(boxes, batch, grid, predictions=logits.shape[1])
    matched = logits.flatten(0, 1)[assignment.slot]
    box_terms = _box_terms(matched, boxes, grid.at(assignment.slot % logits.shape[1]), box_loss)
    scale = 2 - sides(boxes).prod(1) / grid.size**2
    positive = scale * box_terms + F.softplus(-matched[:, 4]) + _class_terms(matched, batch.box_class, assignment)
    background = _background(decode(logits.detach(), grid), boxes, batch, assignment, ignore_threshold)
    return positive.where(assignment.is_target, 0).sum() + F.softplus(logits[..., 4]).where(background, 0).sum()


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
    same_slot = (slot[:, None] == slot) & valid[:, None] & valid
    return _Assignment(valid, slot, valid & ~same_slot.triu(1).any(1), same_slot)


def _side_iou(extent: Tensor, anchors: Tensor) -> Tensor:
    """IoU [M, 9] of boxes with sides [M, 2] and anchors [9, 2] with the same centre."""
    shared = torch.minimum(extent[:, None], anchors).prod(2)
    return shared / (extent.prod(1)[:, None] + anchors.prod(1) - shared)


def _box_terms(matched: Tensor, boxes: Tensor, grid: YoloGrid, kind: BoxLoss) -> Tensor:
    """Box losses [M] of the matched logits [M, 5 + classes]; ``boxes`` [M, 4], ``grid`` of the matched predictions."""
    if kind == "darknet":
        return _darknet_box_terms(matched, boxes, grid)
    loss = giou_loss if kind == "giou" else ciou_loss
    return loss(decode(matched, grid), boxes)


def _darknet_box_terms(matched: Tensor, boxes: Tensor, grid: YoloGrid) -> Tensor:
    offset = (boxes[:, :2] + boxes[:, 2:]) / 2 / grid.stride - grid.cell
    tiny = torch.finfo(boxes.dtype).tiny  # invalid boxes may have no area; their terms must stay finite
    log_scale = (sides(boxes) / grid.anchor).clamp(min=tiny).log()
    place = F.binary_cross_entropy_with_logits(matched[:, :2], offset, reduction="none")
    return place.sum(1) + ((matched[:, 2:4] - log_scale) ** 2).sum(1) / 2


def _class_terms(matched: Tensor, classes: Tensor, assignment: _Assignment) -> Tensor:
    """Classification losses [M] against the classes of all boxes with the same slot."""
    wanted = classes[:, None] == torch.arange(matched.shape[1] - 5, device=classes.device)
    target = (assignment.same_slot.to(matched.dtype) @ wanted.to(matched.dtype)).clamp(max=1)
    return F.binary_cross_entropy_with_logits(matched[:, 5:], target, reduction="none").sum(1)


def _background(
    predicted: Tensor, boxes: Tensor, batch: Batch, assignment: _Assignment, ignore_threshold: float
) -> Tensor:
    """Predictions with the "no object" loss, [B, P] bool; ``predicted`` [B, P, 4] are their boxes."""
    overlaps = pair_iou(boxes[:, None], predicted[batch.box_image]) > ignore_threshold
    not_background = predicted.new_zeros(predicted.shape[:2])
    not_background.index_add_(0, batch.box_image, (overlaps & assignment.valid[:, None]).to(not_background.dtype))
    not_background.view(-1).index_add_(0, assignment.slot, assignment.valid.to(not_background.dtype))
    return batch.has["detection"][:, None] & (not_background == 0)
