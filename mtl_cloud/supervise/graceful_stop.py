"""Wait for the trainer; when a stop condition holds, ask it to save and stop, then escalate to SIGTERM and SIGKILL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from mtl_cloud.runs.scratch import Scratch, StopReason
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.stop_conditions import Stop, Watcher

__all__ = ["Process", "first_stop", "supervise_process"]


class Process(Protocol):
    """The process under supervision."""

    def wait(self, timeout_s: float | None) -> int | None:
        """The exit code, or None after ``timeout_s`` seconds. A timeout of None waits without limit."""
        ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def supervise_process(
    process: Process, watchers: Iterable[Watcher], scratch: Scratch, settings: SupervisorOptions
) -> tuple[int, Stop | None]:
    """Wait for the end of ``process``. Returns its exit code, and the reason if it was asked to stop."""
    while (exit_code := process.wait(settings.tick_s)) is None:
        stop = first_stop(watchers)
        if stop is not None:
            return _end(process, stop, scratch, settings), stop
    return exit_code, None


def first_stop(watchers: Iterable[Watcher]) -> Stop | None:
    return next((stop for watcher in watchers if (stop := watcher.poll()) is not None), None)


def _end(process: Process, stop: Stop, scratch: Scratch, settings: SupervisorOptions) -> int:
    """Ask, then SIGTERM, then SIGKILL, each after the previous one had its share of the grace period."""
    for act, timeout_s in _escalation(process, stop, scratch, settings):
        act()
        exit_code = process.wait(timeout_s)
        if exit_code is not None:
            return exit_code
    raise AssertionError("a process outlived its SIGKILL")  # the last step waits without limit


def _escalation(
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
    except OSError:  # a full disk; SIGTERM asks the trainer for the same
        process.terminate()
