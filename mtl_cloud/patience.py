"""Waiting for a storage that fails for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, NotFoundError, RecordError, RunTakenOverError, StorageError

__all__ = ["patiently"]

T = TypeVar("T")
_ANSWERS = (AlreadyExistsError, NotFoundError, RecordError, RunTakenOverError)
"""These say something about an object; every other storage error says something about the storage."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


def patiently(action: Callable[[], T], *, patience_s: float, clock: Clock) -> T:
    """The action's value. While the storage fails it is asked again, for at most ``patience_s``."""
    end = clock.monotonic() + patience_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except _ANSWERS:
            raise
        except StorageError:
            if clock.monotonic() + pause_s > end:
                raise
        clock.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
