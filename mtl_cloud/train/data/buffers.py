"""Reusable batch buffers: one pool per loader worker, in memory shared with the trainer, or one per process.

The kernel zeroes fresh memory page by page. Allocating it anew for every batch costs a fifth of a worker's time, and a
twentieth of a process that loads by itself (``benchmarks/data_loading.py``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["BatchBuffer", "BufferPool"]


class _Memory(Protocol):
    bytes: npt.NDArray[np.uint8]
    """The whole allocation."""

    def tensor(self, size: int) -> Tensor:
        """[size] uint8: a view of the first ``size`` bytes."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether no tensor uses it any more, as far as this process can tell."""
        ...


class _PrivateMemory:
    """Memory of this process. It is free again when all tensors made of it, and all their views, are deleted."""

    def __init__(self, size: int) -> None:
        self.bytes = np.empty(size, dtype=np.uint8)
        self._lent: Callable[[], Any] = lambda: None

    def tensor(self, size: int) -> Tensor:
        lent = self._lent()
        if lent is None:
            lent = self.bytes.view()
            self._lent = weakref.ref(lent)
        return torch.from_numpy(lent)[:size]  # its storage, which all views of it share, keeps `lent` alive

    @property
    def is_free(self) -> bool:
        return self._lent() is None


class _SharedMemory:
    """Memory of a loader worker. The worker cannot tell whether the trainer's process still uses it."""

    is_free = False

    def __init__(self, size: int) -> None:
        self._all: Tensor = torch.empty(size, dtype=torch.uint8).share_memory_()
        self.bytes: npt.NDArray[np.uint8] = self._all.numpy()

    def tensor(self, size: int) -> Tensor:
        return self._all[:size]


class BatchBuffer:
    """The pixels and masks of one batch. Clearing it does not overwrite its old content."""

    def __init__(self, allocate: Callable[[int], _Memory]) -> None:
        self._allocate = allocate
        self._pixels, self._masks = allocate(0), allocate(0)
        self._used = 0

    @property
    def is_free(self) -> bool:
        """Whether no tensor of its last batch exists any more."""
        return self._pixels.is_free and self._masks.is_free

    def clear(self) -> None:
        self._used = 0

    def add(self, crop: npt.NDArray[np.uint8]) -> int:
        """Append the pixels of a crop [height, width, 3]; returns the index of its first pixel in ``pixels``."""
        start, self._used = self._used, self._used + crop.size
        if self._used > self._pixels.bytes.size:
            larger = self._allocate(self._used + self._used // 4)
            larger.bytes[:start] = self._pixels.bytes[:start]
            self._pixels = larger
        self._pixels.bytes[start : self._used].reshape(crop.shape)[:] = crop
        return start // 3

    def pixels(self) -> Tensor:
        """[n, 3] uint8: all pixels added since the buffer was cleared."""
        return self._pixels.tensor(self._used).view(-1, 3)

    def masks(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 of ``shape``, uninitialised."""
        if self._masks.bytes.size < prod(shape):
            self._masks = self._allocate(prod(shape))
        return self._masks.tensor(prod(shape)).view(shape)


class BufferPool:
    """Up to ``size`` buffers. A loader worker rotates through them; any other process reuses those that are free, and
    allocates a buffer outside the pool if none is. Finish a batch before you take the next buffer.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers: list[BatchBuffer] = []

    def take(self) -> BatchBuffer:
        """An empty buffer. In a worker it is reused after ``size`` more calls; elsewhere, once its tensors are gone."""
        buffer = self._next_in_rotation() if get_worker_info() else self._free_buffer()
        buffer.clear()
        return buffer

    def _next_in_rotation(self) -> BatchBuffer:
        buffer = BatchBuffer(_SharedMemory) if len(self._buffers) < self._size else self._buffers.pop(0)
        self._buffers.append(buffer)
        return buffer

    def _free_buffer(self) -> BatchBuffer:
        for buffer in self._buffers:
            if buffer.is_free:
                return buffer
        buffer = BatchBuffer(_PrivateMemory)
        if len(self._buffers) < self._size:
            self._buffers.append(buffer)
        return buffer
