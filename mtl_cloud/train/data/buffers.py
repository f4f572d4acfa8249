"""Memory for batches that is taken again and again: a loader worker's, which it shares with the trainer, and a
process's own.

Memory that nobody has used yet is handed out page by page, zeroed, and given back so: with new memory for every batch
that is a fifth of a worker's time, and a twentieth of a process that loads by itself (``benchmarks/data_loading.py``).
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

__all__ = ["Room", "Rooms"]


class _Memory(Protocol):
    bytes: npt.NDArray[np.uint8]
    """All of it."""

    def tensor(self, size: int) -> Tensor:
        """[size] uint8: the first so many of its bytes."""
        ...

    @property
    def is_free(self) -> bool:
        """Has it not been given away, as far as can be told from here?"""
        ...


class _Own:
    """This process's. It is free again when nothing is left of the tensors that were made of it, nor of their views."""

    def __init__(self, size: int) -> None:
        self.bytes = np.empty(size, dtype=np.uint8)
        self._given: Callable[[], Any] = lambda: None

    def tensor(self, size: int) -> Tensor:
        given = self._given()
        if given is None:
            given = self.bytes.view()
            self._given = weakref.ref(given)
        return torch.from_numpy(given)[:size]  # its storage, which all views of it share, keeps `given` alive

    @property
    def is_free(self) -> bool:
        return self._given() is None


class _Shared:
    """Of a loader worker. Who in the trainer's process still looks at it, nobody here can tell."""

    is_free = False

    def __init__(self, size: int) -> None:
        self._all: Tensor = torch.empty(size, dtype=torch.uint8).share_memory_()
        self.bytes: npt.NDArray[np.uint8] = self._all.numpy()

    def tensor(self, size: int) -> Tensor:
        return self._all[:size]


class Room:
    """The memory of one batch: pixels as they come, and masks. Whatever was in it is in it still."""

    def __init__(self, allocate: Callable[[int], _Memory]) -> None:
        self._allocate = allocate
        self._pixels, self._masks = allocate(0), allocate(0)
        self._used = 0

    @property
    def is_free(self) -> bool:
        """Is nothing left of the batch that was in it?"""
        return self._pixels.is_free and self._masks.is_free

    def clear(self) -> None:
        self._used = 0

    def add(self, part: npt.NDArray[np.uint8]) -> int:
        """Keep a part [height, width, 3] of an image; returns which of all pixels its first one is."""
        start, self._used = self._used, self._used + part.size
        if self._used > self._pixels.bytes.size:
            larger = self._allocate(self._used + self._used // 4)
            larger.bytes[:start] = self._pixels.bytes[:start]
            self._pixels = larger
        self._pixels.bytes[start : self._used].reshape(part.shape)[:] = part
        return start // 3

    def pixels(self) -> Tensor:
        """[n, 3] uint8: all that was added since the room was cleared."""
        return self._pixels.tensor(self._used).view(-1, 3)

    def masks(self, shape: tuple[int, ...]) -> Tensor:
        """uint8."""
        if self._masks.bytes.size < prod(shape):
            self._masks = self._allocate(prod(shape))
        return self._masks.tensor(prod(shape)).view(shape)


class Rooms:
    """In a loader worker ``turns`` rooms in turn; in any other process at most as many, those that are free again, and
    new ones where none is. A room's batch is made before the next room is taken.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._rooms: list[Room] = []

    def take(self) -> Room:
        """A worker's is its own until ``turns`` more have been taken; any other as long as something of it is left."""
        room = self._next_in_turn() if get_worker_info() else self._free_one()
        room.clear()
        return room

    def _next_in_turn(self) -> Room:
        room = Room(_Shared) if len(self._rooms) < self._turns else self._rooms.pop(0)
        self._rooms.append(room)
        return room

    def _free_one(self) -> Room:
        for room in self._rooms:
            if room.is_free:
                return room
        room = Room(_Own)
        if len(self._rooms) < self._turns:
            self._rooms.append(room)
        return room
