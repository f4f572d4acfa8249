"""Host buffers in the layout of safetensors files: tensors copied into them can be stored without serialisation.

The format (https://huggingface.co/docs/safetensors): the header's length in 8 bytes, a JSON header, and the tensors'
bytes, little-endian, row-major and without gaps. Nothing in it is executed on load.

Allocating memory costs several times as much as a copy into it: the kernel zeroes it page by page, and CUDA has to pin
it. A run's states have the same tensors, so ``HostBuffers`` reuses the memory of one state for the next.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPES", "HostBuffer", "HostBuffers", "TensorSpec"]

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
"""Data type -> its name in the format."""
_ALIGNMENT = 64


class TensorSpec(NamedTuple):
    """Name, data type and shape of a tensor, to allocate memory for it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class HostBuffer(NamedTuple):
    """One file: ``data`` is the whole file, and the tensors are views into it."""

    data: memoryview
    tensors: Mapping[str, Tensor]


class HostBuffers:
    """Reusable memory for states; each state overwrites the previous one.

    Holds as many bytes as the newest state, plus headers.
    """

    def __init__(self) -> None:
        self.buffers: Sequence[HostBuffer] = ()
        self._plan: object = None

    def allocate(self, specs: Sequence[TensorSpec], *, part_bytes: int, pinned: bool) -> Sequence[HostBuffer]:
        """Uninitialised buffers for the tensors: consecutive ones together, at most ``part_bytes`` in a buffer."""
        plan = (specs, part_bytes, pinned)
        if plan != self._plan:
            self.buffers = ()  # freed before the next allocation
            self.buffers = [_allocated(group, pinned=pinned) for group in _packed(specs, part_bytes)]
            self._plan = plan
        return self.buffers


def _packed(specs: Iterable[TensorSpec], part_bytes: int) -> Iterator[list[TensorSpec]]:
    group: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if group and size + spec.nbytes > part_bytes:
            yield group
            group, size = [], 0
        group.append(spec)
        size += spec.nbytes
    if group:
        yield group


def _allocated(specs: list[TensorSpec], *, pinned: bool) -> HostBuffer:
    specs = sorted(specs, key=lambda spec: -spec.dtype.itemsize)  # so that all are aligned
    header, begin = {}, 0
    for spec in specs:
        offsets = [begin, begin := begin + spec.nbytes]
        header[spec.name] = {"dtype": DTYPES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
    head = _padded(json.dumps(header, separators=(",", ":")).encode())
    file = torch.empty(len(head) + begin, dtype=torch.uint8, pin_memory=pinned)
    data = file.numpy().data
    data[: len(head)] = head
    return HostBuffer(data, dict(_views(file[len(head) :], specs)))


def _padded(header: bytes) -> bytes:
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _views(body: Tensor, specs: list[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    for spec, data in zip(specs, torch.split(body, [spec.nbytes for spec in specs]), strict=True):
        yield spec.name, data.view(spec.dtype).view(spec.shape)
