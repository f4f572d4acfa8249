"""Host memory laid out as safetensors files: what is copied into its tensors is ready to be stored as it lies.

The format (https://huggingface.co/docs/safetensors): the header's length in 8 bytes, a JSON header, and the tensors'
bytes, little-endian, row-major and without gaps. Nothing in it is executed on load.

Fresh memory costs several times what a copy into it does: the system hands it out page by page, and CUDA has to pin it.
A run's states are alike, so ``HostBuffers`` keeps the memory of one state for the next.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPES", "HostBuffers", "Part", "TensorSpec"]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of the data types that it has."""
_ALIGNMENT = 64


class TensorSpec(NamedTuple):
    """What has to be known of a tensor to make room for it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Part(NamedTuple):
    """One file: ``data`` is all of it, and the tensors are views into it."""

    data: memoryview
    tensors: Mapping[str, Tensor]


class HostBuffers:
    """The memory that one state after another is copied into; each overwrites the one before.

    Holds as many bytes as the newest state, besides the headers.
    """

    def __init__(self) -> None:
        self.parts: Sequence[Part] = ()
        self._plan: object = None

    def lay_out(self, specs: Sequence[TensorSpec], *, part_bytes: int, pinned: bool) -> Sequence[Part]:
        """Room for the tensors, with anything in it: consecutive ones together, ``part_bytes`` of them at most."""
        plan = (specs, part_bytes, pinned)
        if plan != self._plan:
            self.parts = ()  # freed before its successor is made
            self.parts = [_make(part, pinned=pinned) for part in _packed(specs, part_bytes)]
            self._plan = plan
        return self.parts


def _packed(specs: Iterable[TensorSpec], part_bytes: int) -> Iterator[list[TensorSpec]]:
    part: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if part and size + spec.nbytes > part_bytes:
            yield part
            part, size = [], 0
        part.append(spec)
        size += spec.nbytes
    if part:
        yield part


def _make(specs: list[TensorSpec], *, pinned: bool) -> Part:
    specs = sorted(specs, key=lambda spec: -spec.dtype.itemsize)  # none can then be misaligned
    header, begin = {}, 0
    for spec in specs:
        offsets = [begin, begin := begin + spec.nbytes]
        header[spec.name] = {"dtype": DTYPES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
    head = _head(json.dumps(header, separators=(",", ":")).encode())
    image = torch.empty(len(head) + begin, dtype=torch.uint8, pin_memory=pinned)
    data = image.numpy().data
    data[: len(head)] = head
    return Part(data, dict(_views(image[len(head) :], specs)))


def _head(header: bytes) -> bytes:
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _views(body: Tensor, specs: list[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    for spec, whole in zip(specs, torch.split(body, [spec.nbytes for spec in specs]), strict=True):
        yield spec.name, whole.view(spec.dtype).view(spec.shape)
