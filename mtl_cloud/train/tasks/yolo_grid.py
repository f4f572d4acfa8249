"""The grid of YOLOv3's predictions: the three scales as one list of P cells and anchors, and decoding to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from mtl_cloud.train.nets.anchors import ANCHOR_MASKS, STRIDES

__all__ = ["Anchors", "YoloGrid", "decode", "flatten", "grid_of"]

Anchors: TypeAlias = tuple[tuple[float, float], ...]
"""Nine (width, height) in pixels of the input, smallest first."""

_LARGEST_LOG_SCALE = 8.0  # e^8 times an anchor is wider than any input, e^-8 times narrower than any truth


@dataclass(frozen=True)
class YoloGrid:
    """Constants of an S x S input. P = 3 anchors x cells of the three scales, scales in the order of ``STRIDES``.

    Within a scale, predictions are ordered by anchor, row, column, like the network's output.
    """

    size: int
    """S, in pixels."""
    cell: Tensor
    """[P, 2] column and row."""
    stride: Tensor
    """[P, 1] pixels per cell."""
    anchor: Tensor
    """[P, 2] width and height in pixels."""
    anchors: Tensor
    """[9, 2] width and height in pixels of all anchors."""
    anchor_stride: Tensor
    """[9] stride of the scale that each anchor belongs to."""
    anchor_offset: Tensor
    """[9] int64: index among P of each anchor's first cell."""

    def at(self, index: Tensor) -> YoloGrid:
        """The grid of selected predictions: ``index`` [M], which may repeat, replaces P."""
        return replace(self, cell=self.cell[index], stride=self.stride[index], anchor=self.anchor[index])


def grid_of(outputs: Sequence[Tensor], anchors: Anchors) -> YoloGrid:
    """The grid of a network's three outputs [B, 3, S/stride, S/stride, 5 + classes]."""
    return _grid(int(outputs[0].shape[2]) * STRIDES[0], anchors, outputs[0].device)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # a grid first built in validation is also used in training
def _grid(size: int, anchors: Anchors, device: torch.device) -> YoloGrid:
    """Cached, because building it copies from the host."""
    strides = torch.tensor(STRIDES).repeat_interleave(3 * (size // torch.tensor(STRIDES)) ** 2)
    owners, cells = zip(
        *(_scale(size // stride, mask) for stride, mask in zip(STRIDES, ANCHOR_MASKS, strict=True)), strict=True
    )
    owner, cell = torch.cat(owners), torch.cat(cells)
    table = torch.tensor(anchors, dtype=torch.float32)
    first = torch.stack([(owner == index).nonzero()[0, 0] for index in range(len(anchors))])
    parts = (cell.float(), strides[:, None].float(), table[owner], table, strides[first].float(), first)
    return YoloGrid(size, *(part.to(device) for part in parts))


def _scale(n: int, mask: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Anchor indices [3 * n * n] and cells [3 * n * n, 2] of a scale with n x n cells."""
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    cells = torch.stack([columns, rows], dim=-1).view(-1, 2).repeat(len(mask), 1)
    return torch.tensor(mask).repeat_interleave(n * n), cells


def flatten(outputs: Sequence[Tensor]) -> Tensor:
    """Join the three outputs [B, 3, S/stride, S/stride, 5 + classes] to [B, P, 5 + classes], at least float32."""
    logits = torch.cat([output.flatten(1, 3) for output in outputs], dim=1)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def decode(logits: Tensor, grid: YoloGrid) -> Tensor:
    """Boxes [..., 4] (left, top, right, bottom, pixels) of logits [..., 5 + classes] in the order of ``grid``."""
    centre = (grid.cell + logits[..., :2].sigmoid()) * grid.stride
    half = grid.anchor * logits[..., 2:4].clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)
