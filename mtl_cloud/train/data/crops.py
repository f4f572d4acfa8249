"""Image crops from the loader, resized on the device to the network's square input.

The resize is that of torch for uint8 on the CPU: 16-bit weights, columns before rows, each pass rounded. Pixels are
combined in integer arithmetic, so every device makes the same pixels of a crop.
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

__all__ = ["GREY", "CropRegion", "Crops", "resize_batched", "resize_crop"]

GREY = 128
"""Padding around an image: darknet's 0.5."""
_MAX_BITS = 22
"""Fraction bits of torch's weights. There are fewer where the largest weight would not fit a signed 16-bit integer."""
_MAX_PIXELS = 1 << 23
"""Pixels that one pass handles at a time. They need some 100 MiB of intermediate sums and indices."""
_Number = TypeVar("_Number", int, Tensor)


class CropRegion(NamedTuple, Generic[_Number]):
    """A crop's place in memory, and its place on the square, in pixels; of one image, or tensors of many."""

    start: _Number
    stride: _Number
    """Pixels from one row to the next."""
    height: _Number
    width: _Number
    top: _Number
    bottom: _Number
    left: _Number
    right: _Number
    """Rows and columns of the square that it covers, at least one of each. ``bottom`` and ``right`` are exclusive."""
    flip: _Number
    """1 where the square is mirrored afterwards, else 0."""


class Crops(NamedTuple):
    """The images of a batch before they are resized."""

    pixels: Tensor
    """[n, 3] uint8, RGB."""
    regions: Tensor
    """[B, 9] int64, one ``CropRegion`` per image; on the host."""
    size: int
    """Side of the squares."""

    @classmethod
    def of(cls, pixels: Tensor, regions: Sequence[CropRegion[int]], size: int) -> Crops:
        return cls(pixels, torch.tensor(regions, dtype=torch.int64).view(-1, len(CropRegion._fields)), size)

    def resize(self, device: torch.device) -> Tensor:
        """[B, 3, size, size] uint8 on ``device``, in the channels-last memory format.

        The resize is bilinear, with a low-pass filter where an image shrinks; padding is grey. The host does not wait
        for a GPU.
        """
        pixels = self.pixels.to(device, non_blocking=True)
        return (_resize_one_by_one if device.type == "cpu" else resize_batched)(pixels, self.regions, self.size)


def _resize_one_by_one(pixels: Tensor, regions: Tensor, size: int) -> Tensor:
    """Uses torch's own resize, which is the fastest on a CPU."""
    squares = torch.empty(len(regions), size, size, 3, dtype=torch.uint8)
    for square, numbers in zip(squares, regions.tolist(), strict=True):
        region: CropRegion[int] = CropRegion(*numbers)
        part = pixels[region.start :].as_strided((region.height, region.width, 3), (3 * region.stride, 3, 1))
        shape = region.bottom - region.top, region.right - region.left
        image = resize_crop(part, shape)
        left, right = region.left, region.right
        if region.flip:
            image, left, right = image.flip(1), size - right, size - left
        target = square if image.shape == square.shape else square.fill_(GREY)[region.top : region.bottom, left:right]
        target.copy_(image)
    return squares.permute(0, 3, 1, 2)


def resize_crop(crop: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize ``crop``, [height, width, 3] uint8, to ``shape`` (height, width) on the CPU."""
    image = crop[None].contiguous().permute(0, 3, 1, 2)  # torch is fastest in this layout
    return F.interpolate(image, shape, mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def resize_batched(pixels: Tensor, regions: Tensor, size: int) -> Tensor:
    """The same pixels in integer arithmetic, many images per kernel, for GPUs. ``regions`` is on the host."""
    groups = torch.split(regions, max(1, _MAX_PIXELS // (_max_height(regions) * size)))
    return torch.cat([_resize_group(pixels, group, size) for group in groups]).permute(0, 3, 1, 2)


def _resize_group(pixels: Tensor, regions: Tensor, size: int) -> Tensor:
    """[B, size, size, 3]"""
    taps = _max_taps(regions)
    row = torch.arange(_max_height(regions), device=pixels.device)
    place = torch.arange(size, device=pixels.device)
    region = _columns(regions.to(pixels.device, non_blocking=True)[..., None])
    down = _Axis.of(place - region.top, target=region.bottom - region.top, source=region.height, taps=taps)
    mirrored = torch.where(region.flip.bool(), size - 1 - place, place)
    across = _Axis.of(mirrored - region.left, target=region.right - region.left, source=region.width, taps=taps)
    # Crops with fewer rows repeat their last one; `down` does not read the repeats.
    first = (region.start + row.minimum(region.height - 1) * region.stride)[..., None]
    rows = across.blended(lambda source: pixels[first + source[:, None]], dim=2)
    image = torch.arange(len(regions), device=pixels.device)[:, None]
    squares = down.blended(lambda source: rows[image, source], dim=1)
    return torch.where((down.covered[:, :, None] & across.covered[:, None])[..., None], squares, GREY)


def _columns(regions: Tensor) -> CropRegion[Tensor]:
    return CropRegion(*regions.unbind(1))


def _max_height(regions: Tensor) -> int:
    return int(_columns(regions).height.max())


def _max_taps(regions: Tensor) -> int:
    """Pixels within the widest filter of all regions."""
    region = _columns(regions)
    across = region.width.double() / (region.right - region.left)
    down = region.height.double() / (region.bottom - region.top)
    return math.ceil(2 * max(1.0, across.max().item(), down.max().item()))


@dataclass(frozen=True)
class _Axis:
    """One pass of the resize, along the rows or the columns of B images."""

    sources: Tensor
    """[B, size, taps] int64: the crop's pixels that contribute to each pixel of the square."""
    weights: Tensor
    """[B, size, taps] int32: their weights, in units of 2^-bits."""
    bits: Tensor
    """[B, 1] int32."""
    covered: Tensor
    """[B, size] bool: whether the image covers that pixel of the square."""

    @classmethod
    def of(cls, place: Tensor, *, target: Tensor, source: Tensor, taps: int) -> _Axis:
        """``place`` [B, size] is the position of each pixel of the square in the resized image; ``source`` pixels of
        the crop [B, 1] become ``target``. A pixel's weights form a triangle around its source position and sum to 1.
        """
        covered = (place >= 0) & (place < target)
        scale = source.double() / target
        reach = scale.clamp(min=1)
        centre = (place.double() + 0.5) * scale
        first = (centre - reach + 0.5).floor().clamp(min=0)
        end = (centre + reach + 0.5).floor().minimum(source)
        sources = first[..., None] + torch.arange(taps, device=place.device)
        weights = (1 - ((sources - centre[..., None] + 0.5) / reach[..., None]).abs()).clamp(min=0)
        weights = weights * ((sources < end[..., None]) & covered[..., None])
        total = reduce(Tensor.add, weights.unbind(-1))  # in this order, as torch does
        weights = weights / total[..., None].clamp(min=torch.finfo(weights.dtype).tiny)
        bits = _bits(weights.amax((1, 2)))
        return cls(
            sources=sources.long().minimum(source[..., None] - 1).clamp(min=0),
            weights=(weights * (1 << bits)[..., None] + 0.5).int(),
            bits=bits,
            covered=covered,
        )

    def blended(self, take: Callable[[Tensor], Tensor], dim: int) -> Tensor:
        """uint8 pixels [B, rows, columns, 3], resized along ``dim``. ``take`` returns the source pixels of one tap."""
        unit = [len(self.bits), 1, 1, 1]
        along = [*unit[:dim], -1, *unit[dim + 1 :]]
        sums = (1 << (self.bits - 1)).view(unit)
        for source, weight in zip(self.sources.unbind(-1), self.weights.unbind(-1), strict=True):
            sums = sums + take(source).int() * weight.reshape(along)
        return (sums >> self.bits.view(unit)).clamp(0, 255).to(torch.uint8)


def _bits(largest: Tensor) -> Tensor:
    """[B, 1] int32: the fraction bits that torch uses for weights up to ``largest`` [B]: as many as keep these below
    2^15, and at most 22.
    """
    bits = torch.arange(1, _MAX_BITS + 1, device=largest.device)
    fits = (largest[:, None] * (1 << bits) + 0.5).floor() < 2**15
    return fits.sum(-1, keepdim=True, dtype=torch.int32)
