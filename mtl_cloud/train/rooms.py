"""Memory for the batches of a loader worker: shared with the trainer, and taken again and again.

Shared memory that nobody has used yet is handed out page by page, zeroed, and given back so: with new memory for every
batch that is a fifth of a worker's time (``benchmarks/data_loading.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from math import prod

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["Rooms"]


class Rooms:
    """In a loader worker, the memory of ``turns`` batches; in any other process, memory of its own for every batch."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._shared: dict[tuple[int, int], Tensor] = {}
        self._taken = count()

    def take(self, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
        """Tensors of uint8 for a batch, one of each of ``shapes``; whatever was in them is in them still.

        A worker's are its own until ``turns`` more have been taken.
        """
        if get_worker_info() is None:
            return [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
        turn = next(self._taken) % self._turns
        return [self._room(turn, which, shape) for which, shape in enumerate(shapes)]

    def _room(self, turn: int, which: int, shape: tuple[int, ...]) -> Tensor:
        """The last batch of a pass may be smaller than the others: it gets a part of its room."""
        size, room = prod(shape), self._shared.get((turn, which))
        if room is None or len(room) < size:
            room = torch.empty(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
            self._shared[turn, which] = room
        return room[:size].view(shape)
