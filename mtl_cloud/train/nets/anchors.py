"""YOLOv3's anchors and how its three heads divide them. Plain Python: no torch.

Source: ``anchors=`` and ``mask=`` of darknet's ``cfg/yolov3.cfg``. Pixels of the network's input, whatever its size: as
in darknet, an anchor of 10 pixels is 10 pixels at 320 and at 608. They were clustered on COCO at 416.
"""

from __future__ import annotations

__all__ = ["ANCHORS", "ANCHOR_MASKS", "STRIDES", "anchors_of_heads"]

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
"""(width, height) of the nine, smallest first."""

STRIDES: tuple[int, ...] = (32, 16, 8)
"""Pixels a cell of each head, in the order in which the heads stand in the network's output."""

ANCHOR_MASKS: tuple[tuple[int, ...], ...] = ((6, 7, 8), (3, 4, 5), (0, 1, 2))
"""Indices into ``ANCHORS`` of each head's three."""


def anchors_of_heads(
    anchors: tuple[tuple[float, float], ...] = ANCHORS,
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The anchors of each head, in the order of ``STRIDES``."""
    return tuple(tuple(anchors[index] for index in mask) for mask in ANCHOR_MASKS)
