"""Parts of images, as a loader cuts them out, and the network's squares, as the device makes them of these.

The resize is that of torch for uint8 on the CPU: weights of 16 bits, columns before rows, each pass rounded. All of it
is arithmetic of whole numbers, so every device makes the same pixels of a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GREY", "Cuts", "Span", "resized", "squares_together"]

GREY = 128
"""Canvas around an image: darknet's 0.5."""
_MOST_BITS = 22
"""Of torch's weights. Fewer where the largest would not fit 16 bits with its sign."""
_AT_ONCE = 1 << 23
"""Pixels of a pass that are worked on at a time: some 100 MiB of intermediate sums and indices."""
_Number = TypeVar("_Number", int, Tensor)


class Span(NamedTuple, Generic[_Number]):
    """Where a part lies in memory, and where on the square it comes to lie, in pixels. Of one image, or of many."""

    start: _Number
    stride: _Number
    """From a row to the next."""
    height: _Number
    width: _Number
    top: _Number
    bottom: _Number
    left: _Number
    right: _Number
    """Rows and columns that it will cover: at least one of each. ``bottom`` and ``right`` are exclusive."""
    flip: _Number
    """1 where the square is mirrored, after all."""


class Cuts(NamedTuple):
    """The images of a batch before they are resized."""

    pixels: Tensor
    """[n, 3] uint8, RGB."""
    spans: Tensor
    """[B, 9] int64, a ``Span`` an image; on the host."""
    size: int
    """Side of the squares."""

    @classmethod
    def of(cls, pixels: Tensor, spans: Sequence[Span[int]], size: int) -> Cuts:
        return cls(pixels, torch.tensor(spans, dtype=torch.int64).view(-1, len(Span._fields)), size)

    def squares(self, device: torch.device) -> Tensor:
        """[B, 3, size, size] uint8 on ``device``, a pixel's colours side by side.

        Bilinear, with a low-pass filter where an image shrinks; grey where there is none. Nothing waits for a GPU.
        """
        pixels = self.pixels.to(device, non_blocking=True)
        return (_one_by_one if device.type == "cpu" else squares_together)(pixels, self.spans, self.size)


def _one_by_one(pixels: Tensor, spans: Tensor, size: int) -> Tensor:
    """By torch's own resize, which on a CPU is the fastest."""
    squares = torch.empty(len(spans), size, size, 3, dtype=torch.uint8)
    for square, numbers in zip(squares, spans.tolist(), strict=True):
        span: Span[int] = Span(*numbers)
        part = pixels[span.start :].as_strided((span.height, span.width, 3), (3 * span.stride, 3, 1))
        shape = span.bottom - span.top, span.right - span.left
        image = resized(part, shape)
        left, right = span.left, span.right
        if span.flip:
            image, left, right = image.flip(1), size - right, size - left
        room = square if image.shape == square.shape else square.fill_(GREY)[span.top : span.bottom, left:right]
        room.copy_(image)
    return squares.permute(0, 3, 1, 2)


def resized(part: Tensor, shape: tuple[int, int]) -> Tensor:
    """[height, width, 3] uint8 to ``shape``, on the CPU."""
    image = part[None].contiguous().permute(0, 3, 1, 2)  # torch is fastest in this very layout
    return F.interpolate(image, shape, mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def squares_together(pixels: Tensor, spans: Tensor, size: int) -> Tensor:
    """The same by whole numbers, many images in the same few kernels: for GPUs. ``spans`` are on the host."""
    some = torch.split(spans, max(1, _AT_ONCE // (_most_rows(spans) * size)))
    return torch.cat([_together(pixels, each, size) for each in some]).permute(0, 3, 1, 2)


def _together(pixels: Tensor, spans: Tensor, size: int) -> Tensor:
    """[B, size, size, 3]"""
    taps = _most_taps(spans)
    row = torch.arange(_most_rows(spans), device=pixels.device)
    place = torch.arange(size, device=pixels.device)
    span = _columns(spans.to(pixels.device, non_blocking=True)[..., None])
    down = _Axis.of(place - span.top, made=span.bottom - span.top, taken=span.height, taps=taps)
    mirrored = torch.where(span.flip.bool(), size - 1 - place, place)
    across = _Axis.of(mirrored - span.left, made=span.right - span.left, taken=span.width, taps=taps)
    # Of parts with fewer rows the last one is repeated; `down` does not look there.
    first = (span.start + row.minimum(span.height - 1) * span.stride)[..., None]
    rows = across.blended(lambda source: pixels[first + source[:, None]], dim=2)
    image = torch.arange(len(spans), device=pixels.device)[:, None]
    squares = down.blended(lambda source: rows[image, source], dim=1)
    return torch.where((down.covered[:, :, None] & across.covered[:, None])[..., None], squares, GREY)


def _columns(spans: Tensor) -> Span[Tensor]:
    return Span(*spans.unbind(1))


def _most_rows(spans: Tensor) -> int:
    return int(_columns(spans).height.max())


def _most_taps(spans: Tensor) -> int:
    """Pixels that the widest of all triangles reaches over."""
    span = _columns(spans)
    across, down = span.width.double() / (span.right - span.left), span.height.double() / (span.bottom - span.top)
    return math.ceil(2 * max(1.0, across.max().item(), down.max().item()))


@dataclass(frozen=True)
class _Axis:
    """One pass of the resize, along the rows or the columns of B images."""

    sources: Tensor
    """[B, size, taps] int64: the part's pixels that make up each of the square's."""
    weights: Tensor
    """[B, size, taps] int32: how much of each, in units of 2^-bits."""
    bits: Tensor
    """[B, 1] int32."""
    covered: Tensor
    """[B, size] bool: does the image lie there?"""

    @classmethod
    def of(cls, place: Tensor, *, made: Tensor, taken: Tensor, taps: int) -> _Axis:
        """``place`` [B, size]: where along the image each pixel of the square is; ``taken`` of its pixels [B, 1] become
        ``made``. The weights of a pixel are a triangle about where it comes from, and sum up to 1.
        """
        covered = (place >= 0) & (place < made)
        scale = taken.double() / made
        reach = scale.clamp(min=1)
        centre = (place.double() + 0.5) * scale
        first = (centre - reach + 0.5).floor().clamp(min=0)
        end = (centre + reach + 0.5).floor().minimum(taken)
        sources = first[..., None] + torch.arange(taps, device=place.device)
        weights = (1 - ((sources - centre[..., None] + 0.5) / reach[..., None]).abs()).clamp(min=0)
        weights = weights * ((sources < end[..., None]) & covered[..., None])
        total = reduce(Tensor.add, weights.unbind(-1))  # in this order, as torch does
        weights = weights / total[..., None].clamp(min=torch.finfo(weights.dtype).tiny)
        bits = _bits(weights.amax((1, 2)))
        return cls(
            sources=sources.long().minimum(taken[..., None] - 1).clamp(min=0),
            weights=(weights * (1 << bits)[..., None] + 0.5).int(),
            bits=bits,
            covered=covered,
        )

    def blended(self, take: Callable[[Tensor], Tensor], dim: int) -> Tensor:
        """Pixels of uint8 along ``dim`` of the four of [B, rows, columns, 3]. ``take`` gives those of one tap."""
        unit = [len(self.bits), 1, 1, 1]
        along = [*unit[:dim], -1, *unit[dim + 1 :]]
        sums = (1 << (self.bits - 1)).view(unit)
        for source, weight in zip(self.sources.unbind(-1), self.weights.unbind(-1), strict=True):
            sums = sums + take(source).int() * weight.reshape(along)
        return (sums >> self.bits.view(unit)).clamp(0, 255).to(torch.uint8)


def _bits(largest: Tensor) -> Tensor:
    """[B, 1] int32: how many torch gives the fractions of weights, of which ``largest`` [B] are the largest: as many as
    leave these below 2^15, and at most 22.
    """
    bits = torch.arange(1, _MOST_BITS + 1, device=largest.device)
    fits = (largest[:, None] * (1 << bits) + 0.5).floor() < 2**15
    return fits.sum(-1, keepdim=True, dtype=torch.int32)
