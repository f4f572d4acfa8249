"""Attending a trainer: wait for its end, and when a watcher says so, ask it to save and stop, then make it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from mtl_cloud.runs.scratch import Scratch, StopReason
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.stop_conditions import Stop, Watcher

__all__ = ["Process", "attend", "first_stop"]


class Process(Protocol):
    """What is attended: ``TrainerProcess``, or a test's puppet."""

    def wait(self, timeout_s: float | None) -> int | None:
        """Exit code, or None when the timeout came first. None waits for ever."""
        ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def attend(
    process: Process, watchers: Iterable[Watcher], scratch: Scratch, settings: SupervisorOptions
) -> tuple[int, Stop | None]:
    """Exit code, and what the process was asked to stop for, if it was."""
    while (exit_code := process.wait(settings.tick_s)) is None:
        stop = first_stop(watchers)
        if stop is not None:
            return _end(process, stop, scratch, settings), stop
    return exit_code, None


def first_stop(watchers: Iterable[Watcher]) -> Stop | None:
    return next((stop for watcher in watchers if (stop := watcher.poll()) is not None), None)


def _end(process: Process, stop: Stop, scratch: Scratch, settings: SupervisorOptions) -> int:
    """Ask, SIGTERM, SIGKILL: each when the one before it has had its time, all within the grace."""
    for act, timeout_s in _ladder(process, stop, scratch, settings):
        act()
        exit_code = process.wait(timeout_s)
        if exit_code is not None:
            return exit_code
    raise AssertionError("a process outlived its SIGKILL")  # the last step waits for ever


def _ladder(
    process: Process, stop: Stop, scratch: Scratch, settings: SupervisorOptions
) -> list[tuple[Callable[[], None], float | None]]:
    reason = stop.reason
    if reason is None or reason is StopReason.HANG:
        return [(process.kill, None)]
    grace_s = settings.grace_s if stop.grace_s is None else min(settings.grace_s, stop.grace_s)
    return [
        (lambda: _ask(process, reason, scratch), max(0.0, grace_s - settings.kill_after_s)),
        (process.terminate, min(grace_s, settings.kill_after_s)),
        (process.kill, None),
    ]


def _ask(process: Process, reason: StopReason, scratch: Scratch) -> None:
    try:
        scratch.request_stop(reason)
    except OSError:  # a full disk: to the trainer, SIGTERM means the same
        process.terminate()
