"""Overlap of boxes [..., 4] (left, top, right, bottom) with broadcasting, without waiting for the device.

torchvision's ``box_iou`` compares all pairs, and its IoU losses select by mask, which waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ciou_loss", "giou_loss", "pair_iou", "sides"]

_EPSILON = 1e-7  # torchvision's


def sides(boxes: Tensor) -> Tensor:
    """Width and height [..., 2]."""
    return boxes[..., 2:] - boxes[..., :2]


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [...]; NaN for two boxes without area."""
    shared, union = _shared_and_union(a, b)
    return shared / union


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019)."""
    shared, union = _shared_and_union(a, b)
    hull = sides(_hull(a, b)).prod(-1)
    return 1 - shared / (union + _EPSILON) + (hull - union) / (hull + _EPSILON)


def ciou_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 - complete IoU (Zheng et al. 2020), which includes the centres' distance and the aspect ratios."""
    shared, union = _shared_and_union(predicted, true)
    iou = shared / (union + _EPSILON)
    diagonal2 = (sides(_hull(predicted, true)) ** 2).sum(-1) + _EPSILON
    apart2 = ((predicted[..., :2] + predicted[..., 2:] - true[..., :2] - true[..., 2:]) ** 2).sum(-1) / 4
    aspect = 4 / math.pi**2 * (_angle(predicted) - _angle(true)) ** 2
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + _EPSILON)
    return 1 - iou + apart2 / diagonal2 + trade_off * aspect


def _shared_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    corners = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(-1)
    return shared, sides(a).prod(-1) + sides(b).prod(-1) - shared


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """The smallest box that contains both."""
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1)


def _angle(boxes: Tensor) -> Tensor:
    width, height = sides(boxes).unbind(-1)
    return torch.atan2(width, height)
