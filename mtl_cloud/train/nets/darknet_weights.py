"""Darknet's ``.weights`` files: a header, then float32 numbers, convolution by convolution in the order of the cfg.

Layout (darknet's ``parser.c``), little-endian::

    int32 major, minor, revision
    int64 seen                     images trained on; int32 in files older than version 0.2
    for each convolution:
        with batch normalisation:  biases, scales, running means, running variances
        without:                   biases
        weights [filters, channels, height, width]
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.train.nets.yolo import ConvBlock, YOLOv3

__all__ = ["Header", "load_weights", "read_weights", "save_weights"]

Numbers: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """The header of a file. The defaults are what darknet writes for YOLOv3."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def counts_in_64_bits(self) -> bool:
        return self.major * 10 + self.minor >= 2

    def pack(self) -> bytes:
        return struct.pack("<iiiq", self.major, self.minor, self.revision, self.seen)


def read_weights(path: Path) -> tuple[Header, Numbers]:
    """The header and all numbers of a file, not split into layers.

    Raises ``TrainingError`` if the file is shorter than a header or ends in the middle of a number.
    """
    content = path.read_bytes()
    if len(content) < 16:
        raise TrainingError(f"{path}: not darknet weights: {len(content)} bytes, but the header alone has 16")
    major, minor, revision, seen = struct.unpack_from("<4i", content)
    header, size = Header(major, minor, revision, seen), 16
    if header.counts_in_64_bits:
        header, size = Header(*struct.unpack_from("<iiiq", content)), 20
    if (len(content) - size) % 4:
        raise TrainingError(f"{path}: truncated: {len(content)} bytes end in the middle of a number")
    return header, np.frombuffer(content, dtype="<f4", offset=size)


def save_weights(path: Path, yolo: YOLOv3, *, seen: int = 0) -> None:
    """Write a network's weights in darknet's format. ``seen``: images trained on."""
    with path.open("wb") as file:
        file.write(Header(seen=seen).pack())
        for tensor in (tensor for layer in _layers(yolo) for tensor in _tensors(layer)):
            file.write(tensor.detach().cpu().numpy().astype("<f4").tobytes())


def load_weights(path: Path, yolo: YOLOv3) -> tuple[str, ...]:
    """Load a file of YOLOv3 with any number of classes, or of Darknet-53 with or without its classifier.

    Returns the prefixes of the ``state_dict`` keys that keep their random weights, because the file lacks them or has
    them for another number of classes. Raises ``TrainingError`` if the count of numbers fits none of these files.
    """
    _, numbers = read_weights(path)
    file = _FileLayout.of(yolo)
    entries, rest = divmod(len(numbers) - file.without_logits, file.per_entry)
    if rest == 0 and entries > 5:
        return _fill_yolo(yolo, numbers, entries)
    extra = len(numbers) - file.backbone
    if 0 <= extra < file.without_logits - file.backbone and extra % file.per_class == 0:
        _fill(_layers(yolo.backbone), numbers)
        return ("scales.",)
    raise TrainingError(
        f"{path}: {len(numbers):,} numbers fit neither YOLOv3 ({file.without_logits:,} + {file.per_entry:,} times "
        f"5 + classes) nor Darknet-53 ({file.backbone:,}, with a classifier {file.per_class:,} more a class)",
        hint="darknet files hold width 1; check model.width, and that the download is whole",
    )


@dataclass(frozen=True)
class _FileLayout:
    """Counts of numbers in the files that a network can load."""

    backbone: int
    without_logits: int
    per_entry: int
    """Numbers of YOLOv3's three last convolutions for each of their 5 + classes entries."""
    per_class: int
    """Numbers of Darknet-53's classifier for each class."""

    @classmethod
    def of(cls, yolo: YOLOv3) -> _FileLayout:
        logits = [layer for layer in _layers(yolo) if not isinstance(layer, ConvBlock)]
        return cls(
            backbone=_count(_layers(yolo.backbone)),
            without_logits=_count(_layers(yolo)) - _count(logits),
            per_entry=_count(logits) // yolo.entries,
            per_class=yolo.stages[-1].channels + 1,
        )


_Layer: TypeAlias = ConvBlock | nn.Conv2d


def _layers(module: nn.Module) -> Iterator[_Layer]:
    """The convolutions in the order of the cfg; a bare ``Conv2d`` is one without batch normalisation."""
    for child in module.modules():
        if isinstance(child, ConvBlock) or (isinstance(child, nn.Conv2d) and child.bias is not None):
            yield child


def _tensors(layer: _Layer) -> tuple[Tensor, ...]:
    """A layer's tensors in the order of the file."""
    if isinstance(layer, ConvBlock):
        norm = layer.norm.state_dict(keep_vars=True)
        return (norm["bias"], norm["weight"], norm["running_mean"], norm["running_var"], layer.conv.weight)
    return tuple(layer.state_dict(keep_vars=True)[name] for name in ("bias", "weight"))


def _count(layers: Iterable[_Layer]) -> int:
    return sum(tensor.numel() for layer in layers for tensor in _tensors(layer))


def _fill_yolo(yolo: YOLOv3, numbers: Numbers, entries: int) -> tuple[str, ...]:
    if entries == yolo.entries:
        _fill(_layers(yolo), numbers)
        return ()
    for layer in _layers(yolo):
        if isinstance(layer, ConvBlock):
            numbers = _fill([layer], numbers)
        else:
            numbers = numbers[_count([layer]) // yolo.entries * entries :]
    return yolo.head_prefixes


@torch.no_grad()
def _fill(layers: Iterable[_Layer], numbers: Numbers) -> Numbers:
    """Copy numbers into the layers. Returns the remaining ones."""
    for tensor in (tensor for layer in layers for tensor in _tensors(layer)):
        tensor.copy_(torch.from_numpy(numbers[: tensor.numel()].copy()).view_as(tensor))
        numbers = numbers[tensor.numel() :]
    return numbers
