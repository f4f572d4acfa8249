"""Watchers, one for each stop condition. The supervisor polls all of them several times a second."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Protocol, Self

from mtl_cloud.clock import Clock
from mtl_cloud.errors import RunTakenOverError
from mtl_cloud.runs.lifecycle import cancel_message
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import Scratch, StopReason

__all__ = [
    "CancelWatcher",
    "DeadlineWatcher",
    "HangWatcher",
    "OwnerWatcher",
    "PolledWatcher",
    "SignalWatcher",
    "Stop",
    "Watcher",
]


@dataclass(frozen=True)
class Stop:
    """A stop condition that holds."""

    reason: StopReason | None
    """None: another attempt owns the run. The trainer is then killed at once, since it may not commit anything more."""
    message: str
    grace_s: float | None = None
    """Seconds left to save, where the condition itself sets a limit."""


class Watcher(Protocol):
    """Watches one stop condition."""

    def poll(self) -> Stop | None:
        """The stop, or None while the condition does not hold. Never blocks."""
        ...


class PolledWatcher(Watcher, Protocol):
    """A watcher of a remote source: a background thread calls ``look``, and ``poll`` returns what it found."""

    def look(self) -> None:
        """Query the source. May block, and may raise ``StorageError`` or ``OSError``: the caller then retries."""
        ...


class SignalWatcher:
    """SIGTERM (docker stop, SageMaker's stop, a shutdown) and SIGINT. A context manager for the main thread."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def poll(self) -> Stop | None:
        if self._received is None:
            return None
        return Stop(StopReason.SIGTERM, f"the supervisor received {self._received.name}")

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received = signal.Signals(number)


class DeadlineWatcher:
    """A limit on the seconds or dollars of a run, over all its attempts."""

    def __init__(self, reason: StopReason, left_s: float, message: str, clock: Clock) -> None:
        self._stop = Stop(reason, message)
        self._clock = clock
        self._end = clock.monotonic() + left_s

    def poll(self) -> Stop | None:
        return self._stop if self._clock.monotonic() >= self._end else None


class HangWatcher:
    """A trainer that makes no progress: no step, no validation batch, nothing loaded or saved."""

    _TRACES_S = 5.0
    """Lets the trainer's own watchdog, which started a little later, write its stack traces first."""

    def __init__(self, scratch: Scratch, hang_s: float, clock: Clock) -> None:
        self._scratch = scratch
        self._hang_s = hang_s
        self._clock = clock
        self._sign = scratch.progress_mtime_ns()
        self._since = clock.monotonic()

    def poll(self) -> Stop | None:
        sign = self._scratch.progress_mtime_ns()
        if sign != self._sign:
            self._sign, self._since = sign, self._clock.monotonic()
        if self._clock.monotonic() - self._since < self._hang_s + self._TRACES_S:
            return None
        minutes = f"{self._hang_s / 60:.3g} minutes"
        return Stop(StopReason.HANG, f"the trainer made no progress for {minutes} (stack traces are in its log)")


class CancelWatcher:
    """Watches ``cancel.json`` in the storage."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._stop: Stop | None = None

    def look(self) -> None:
        request = self._run.cancel_request()
        if request is not None:
            self._stop = Stop(StopReason.CANCEL, cancel_message(request))

    def poll(self) -> Stop | None:
        return self._stop


class OwnerWatcher:
    """Watches whether a newer attempt owns the run."""

    def __init__(self, run: RunRecord, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._stop: Stop | None = None

    def look(self) -> None:
        try:
            self._run.require_owner(self._attempt)
        except RunTakenOverError as error:
            self._stop = Stop(None, str(error))

    def poll(self) -> Stop | None:
        return self._stop
