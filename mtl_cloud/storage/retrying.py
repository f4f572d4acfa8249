"""A storage that retries through outages."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.storage import Data, Entry, Storage
from mtl_cloud.storage.retry import retry

__all__ = ["RetryingStorage"]

T = TypeVar("T")
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 10.0


def _uniform(low: float, high: float) -> float:
    """Pickled by name; ``random.uniform`` would carry its state, and all loader workers would draw equal pauses."""
    return random.uniform(low, high)  # noqa: S311  # no secret


class RetryingStorage:
    """Wraps a storage, and retries each failed request for at most ``patience_s`` seconds.

    ``draw(0, bound)`` chooses a pause. A ``create`` whose reply was lost raises ``AlreadyExistsError``, as the contract
    of ``Storage.create`` says. Picklable if the storage is.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        patience_s: float,
        clock: Clock,
        draw: Callable[[float, float], float] = _uniform,
    ) -> None:
        self._storage = storage
        self._patience_s = patience_s
        self._clock = clock
        self._draw = draw

    @property
    def url(self) -> str:
        return self._storage.url

    def read(self, key: str) -> bytes:
        return self._retried(partial(self._storage.read, key))

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self._retried(partial(self._storage.read_range, key, offset, size))

    def write(self, key: str, data: Data) -> None:
        self._retried(partial(self._storage.write, key, data))

    def create(self, key: str, data: bytes) -> None:
        self._retried(partial(self._storage.create, key, data))

    def list(self, prefix: str) -> builtins.list[Entry]:
        return self._retried(partial(self._storage.list, prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        return self._retried(partial(self._storage.children, folder))

    def delete(self, key: str) -> None:
        self._retried(partial(self._storage.delete, key))

    def sweep(self, prefix: str, before: datetime) -> int:
        return self._retried(partial(self._storage.sweep, prefix, before))

    def _retried(self, request: Callable[[], T]) -> T:
        return retry(
            request,
            patience_s=self._patience_s,
            first_s=_FIRST_PAUSE_S,
            longest_s=_LONGEST_PAUSE_S,
            clock=self._clock,
            draw=self._draw,
        )
