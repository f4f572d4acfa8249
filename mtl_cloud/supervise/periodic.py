"""A periodic action in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mtl_cloud.clock import Clock
from mtl_cloud.errors import StorageError

__all__ = ["Periodic"]


class Periodic:
    """A context manager that repeats an action in a background thread, so that a hanging storage delays no stop.

    A ``StorageError`` or ``OSError`` (a full disk, an unreachable service) is reported once while it lasts, and the
    action is retried at the next interval.
    """

    def __init__(
        self,
        what: str,
        action: Callable[[], None],
        *,
        interval_s: Callable[[float], float],
        report: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """``interval_s`` maps the thread's age to the next interval, both in seconds."""
        self._what = what
        self._action = action
        self._interval_s = interval_s
        self._report = report
        self._clock = clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def _repeat(self) -> None:
        started = self._clock.monotonic()
        failing = False
        while True:
            failing = self._try(failing=failing)
            if self._over.wait(self._interval_s(self._clock.monotonic() - started)):
                return

    def _try(self, *, failing: bool) -> bool:
        try:
            self._action()
        except (StorageError, OSError) as error:
            if not failing:
                self._report(f"{self._what}: failed, retrying: {error}")
            return True
        if failing:
            self._report(f"{self._what}: recovered")
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
