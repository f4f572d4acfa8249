"""Memory for the batches of a loader worker: shared with the trainer, and taken again and again.

Shared memory that nobody has used yet is handed out page by page, zeroed, and given back so: with new memory for every
batch that is a fifth of a worker's time (``benchmarks/data_loading.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["Room", "Rooms"]


class Room:
    """The memory of one batch: pixels as they come, and masks. Whatever was in it is in it still."""

    def __init__(self, allocate: Callable[[int], Tensor], pixel_bytes: int = 0) -> None:
        self._allocate = allocate
        self._pixels, self._masks = allocate(pixel_bytes), allocate(0)
        self._used = 0

    @property
    def pixel_bytes(self) -> int:
        """What it has room for before it grows."""
        return len(self._pixels)

    def clear(self) -> None:
        self._used = 0

    def add(self, part: npt.NDArray[np.uint8]) -> int:
        """Keep a part [height, width, 3] of an image; returns which of all pixels its first one is."""
        start, self._used = self._used, self._used + part.size
        if self._used > self.pixel_bytes:
            larger = self._allocate(self._used + self._used // 4)
            larger[:start] = self._pixels[:start]
            self._pixels = larger
        self._pixels.numpy()[start : self._used].reshape(part.shape)[:] = part
        return start // 3

    def pixels(self) -> Tensor:
        """[n, 3] uint8: all that was added since the room was cleared."""
        return self._pixels[: self._used].view(-1, 3)

    def masks(self, shape: tuple[int, ...]) -> Tensor:
        """uint8."""
        if len(self._masks) < prod(shape):
            self._masks = self._allocate(prod(shape))
        return self._masks[: prod(shape)].view(shape)


class Rooms:
    """In a loader worker, ``turns`` rooms in turn; in any other process, a new one for every batch."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._shared: list[Room] = []
        self._last = Room(_own)

    def take(self) -> Room:
        """A worker's is its own until ``turns`` more have been taken."""
        if get_worker_info() is None:
            self._last = Room(_own, self._last.pixel_bytes)
            return self._last
        room = Room(_shared) if len(self._shared) < self._turns else self._shared.pop(0)
        self._shared.append(room)
        room.clear()
        return room


def _own(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _shared(size: int) -> Tensor:
    return _own(size).share_memory_()  # type: ignore[no-untyped-call,no-any-return]
