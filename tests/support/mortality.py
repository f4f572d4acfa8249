"""Simulated kills in this process: a trainer under a ``Life`` stops at a chosen event and has no effect after it."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from threading import Lock
from typing import TypeVar

from mtl_cloud.storage import Data, Entry, Storage
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.trainer import Trainer

__all__ = ["Killed", "Life", "MortalStorage", "mortal"]

T = TypeVar("T")


class Killed(BaseException):
    """Not an error: it simulates SIGKILL, which no code can catch."""


class Life:
    """Counts events of all threads of one trainer, and ends at event ``last``: before it, or just after."""

    def __init__(self, last: int | None = None, *, after: bool = False) -> None:
        self.events = 0
        self._last = last
        self._after = after
        self._dead = False
        self._lock = Lock()

    def live(self, act: Callable[[], T]) -> T:
        """Record one event. Raises ``Killed`` at the last one, and at every later call."""
        with self._lock:  # an event and the death that follows it are one
            self.events += not self._dead
            is_last = self.events == self._last
            self._check(is_last and not self._after)
            result = act()
            self._check(is_last)
            return result

    def _check(self, dies: bool) -> None:
        self._dead = self._dead or dies
        if self._dead:
            raise Killed


class MortalStorage:
    """Every request is an event. Completed writes remain, as in a real storage."""

    def __init__(self, storage: Storage, life: Life) -> None:
        self._storage = storage
        self._life = life
        self.url = storage.url

    def read(self, key: str) -> bytes:
        return self._life.live(partial(self._storage.read, key))

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self._life.live(partial(self._storage.read_range, key, offset, size))

    def write(self, key: str, data: Data) -> None:
        self._life.live(partial(self._storage.write, key, data))

    def create(self, key: str, data: bytes) -> None:
        self._life.live(partial(self._storage.create, key, data))

    def list(self, prefix: str) -> builtins.list[Entry]:
        return self._life.live(partial(self._storage.list, prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        return self._life.live(partial(self._storage.children, folder))

    def delete(self, key: str) -> None:
        self._life.live(partial(self._storage.delete, key))

    def sweep(self, prefix: str, before: datetime) -> int:
        return self._life.live(partial(self._storage.sweep, prefix, before))


def mortal(trainer: Trainer, life: Life) -> Trainer:
    """The same trainer; each training and validation batch is an event too."""
    training, validation = trainer.training_batches, trainer.validation_batches
    trainer.training_batches = lambda start: _batches(training(start), life)
    trainer.validation_batches = lambda: _batches(validation(), life)
    return trainer


def _batches(batches: Iterator[Batch], life: Life) -> Iterator[Batch]:
    while (batch := life.live(partial(next, batches, None))) is not None:
        yield batch
