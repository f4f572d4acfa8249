"""Waiting for a storage that fails for a while."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError
from mtl_cloud.storage import Entry, Storage

__all__ = ["PatientStorage"]

T = TypeVar("T")
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


class PatientStorage:
    """Another storage, each of whose requests is made again while it fails, for at most ``patience_s``.

    A ``create`` whose reply was lost finds its key taken by itself, as the contract of ``Storage.create`` says.
    """

    def __init__(self, storage: Storage, *, patience_s: float, clock: Clock) -> None:
        self._storage = storage
        self._patience_s = patience_s
        self._clock = clock

    @property
    def url(self) -> str:
        return self._storage.url

    def read(self, key: str) -> bytes:
        return self._ask(partial(self._storage.read, key))

    def write(self, key: str, data: bytes) -> None:
        self._ask(partial(self._storage.write, key, data))

    def create(self, key: str, data: bytes) -> None:
        self._ask(partial(self._storage.create, key, data))

    def list(self, prefix: str) -> builtins.list[Entry]:
        return self._ask(partial(self._storage.list, prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        return self._ask(partial(self._storage.children, folder))

    def delete(self, key: str) -> None:
        self._ask(partial(self._storage.delete, key))

    def _ask(self, request: Callable[[], T]) -> T:
        end = self._clock.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return request()
            except (AlreadyExistsError, NotFoundError):  # answers: the storage works
                raise
            except StorageError:
                if self._clock.monotonic() + pause_s > end:
                    raise
            self._clock.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
