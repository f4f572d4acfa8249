"""Two or more actors on one storage, whose requests interleave in a given order."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from threading import Condition, Thread
from typing import TypeVar

from waiting import PATIENCE_S

from mtl_cloud.storage import Data, Entry, MemoryStorage, Storage

__all__ = ["Turns", "act_in_turns"]

T = TypeVar("T")


class Turns:
    """Admits one request at a time: of the actor that ``order`` names next, or of any once ``order`` is used up.

    An actor that is not waiting for its turn is waited for, so that an order has one outcome.
    """

    def __init__(self, actors: int, order: Iterable[int]) -> None:
        self._order = list(order)
        self._waiting: set[int] = set()
        self._alive = set(range(actors))
        self._turn: int | None = None
        self._changed = Condition()

    def take(self, actor: int, request: Callable[[], T]) -> T:
        with self._changed:
            self._waiting.add(actor)
            self._choose()
            assert self._changed.wait_for(lambda: self._turn == actor, PATIENCE_S)
            self._waiting.remove(actor)
            self._turn = None
            return request()  # the next turn is given when this actor asks again, or ends

    def end(self, actor: int) -> None:
        with self._changed:
            self._alive.remove(actor)
            self._choose()

    def _choose(self) -> None:
        if self._turn is not None or self._waiting != self._alive or not self._alive:
            return
        wished = self._order.pop(0) if self._order else min(self._alive)
        self._turn = wished if wished in self._alive else min(self._alive)
        self._changed.notify_all()


class _InTurns:
    """One actor's access to the storage."""

    def __init__(self, storage: Storage, turns: Turns, actor: int) -> None:
        self._storage, self._turns, self._actor = storage, turns, actor
        self.url = storage.url

    def read(self, key: str) -> bytes:
        return self._turns.take(self._actor, partial(self._storage.read, key))

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self._turns.take(self._actor, partial(self._storage.read_range, key, offset, size))

    def write(self, key: str, data: Data) -> None:
        self._turns.take(self._actor, partial(self._storage.write, key, data))

    def create(self, key: str, data: bytes) -> None:
        self._turns.take(self._actor, partial(self._storage.create, key, data))

    def list(self, prefix: str) -> builtins.list[Entry]:
        return self._turns.take(self._actor, partial(self._storage.list, prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        return self._turns.take(self._actor, partial(self._storage.children, folder))

    def delete(self, key: str) -> None:
        self._turns.take(self._actor, partial(self._storage.delete, key))

    def sweep(self, prefix: str, before: datetime) -> int:
        return self._turns.take(self._actor, partial(self._storage.sweep, prefix, before))


def act_in_turns(
    storage: MemoryStorage, order: Iterable[int], actors: builtins.list[Callable[[Storage], T]]
) -> builtins.list[T]:
    """Run each actor in a thread, one request at a time. Returns their results."""
    turns, results = Turns(len(actors), order), {}

    def live(number: int) -> None:
        try:
            results[number] = actors[number](_InTurns(storage, turns, number))
        finally:
            turns.end(number)

    threads = [Thread(target=live, args=(number,)) for number in range(len(actors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(actors))]
