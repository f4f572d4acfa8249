"""Assignment of nine anchors to YOLOv3's three heads. Plain Python, without torch.

Source: ``mask=`` of darknet's ``cfg/yolov3.cfg``.
"""

from __future__ import annotations

from mtl_cloud.datasets.anchors import ANCHORS

__all__ = ["ANCHORS", "ANCHOR_MASKS", "STRIDES", "anchors_of_heads"]

STRIDES: tuple[int, ...] = (32, 16, 8)
"""Pixels per cell of each head, in the order of the network's outputs."""

ANCHOR_MASKS: tuple[tuple[int, ...], ...] = ((6, 7, 8), (3, 4, 5), (0, 1, 2))
"""Indices into ``ANCHORS`` of the three anchors of each head."""


def anchors_of_heads(
    anchors: tuple[tuple[float, float], ...] = ANCHORS,
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The anchors of each head, in the order of ``STRIDES``."""
    return tuple(tuple(anchors[index] for index in mask) for mask in ANCHOR_MASKS)
