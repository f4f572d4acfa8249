"""The trainer's side of the control channel to the supervisor."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mtl_cloud.runs.scratch import Scratch

__all__ = ["ControlChannel"]

REPORT_EVERY_S = 1.0


class ControlChannel:
    """One process's side. Only the leading process reports progress; every process polls for stop requests."""

    def __init__(self, scratch: Scratch, *, leads: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._scratch = scratch
        self._leads = leads
        self._clock = clock
        self._reported_at = float("-inf")
        self._got_sigterm = False
        self._hang_s: float | None = None

    def listen(self, hang_s: float | None = None) -> None:
        """Treat SIGTERM, from torchrun or from ``kill``, as a request to save and stop.

        If ``hang_s`` is given, all threads' stack traces go to standard error after ``hang_s`` seconds without a
        heartbeat.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._hang_s = hang_s
        self._rearm()

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self._got_sigterm = True

    @property
    def stop_requested(self) -> bool:
        """Whether the supervisor or a SIGTERM has asked this process to save and stop."""
        return self._got_sigterm or self._scratch.stop_reason() is not None

    def take_save_request(self) -> bool:
        """Whether the supervisor has asked the leading process to save now. Each request is returned once."""
        return self._leads and self._scratch.take_save_request()

    def report_is_due(self) -> bool:
        """Whether the last report is at least ``REPORT_EVERY_S`` old. A report waits for the device."""
        return self._clock() - self._reported_at >= REPORT_EVERY_S

    def report(self, phase: str, **progress: Any) -> None:
        """Replace the progress that the supervisor sees. Counts as a heartbeat."""
        self._rearm()
        if not self._leads:
            return
        try:
            self._scratch.write_progress(phase, **progress)
        except OSError:  # a full disk is no reason to stop: the last report counts as a heartbeat
            self._scratch.touch_progress()

    def heartbeat(self) -> None:
        """Send a heartbeat during long work that has no progress to report. At most one a second is sent."""
        if self.report_is_due():
            self._rearm()
            if self._leads:
                self._scratch.touch_progress()

    def _rearm(self) -> None:
        self._reported_at = self._clock()
        if self._hang_s is not None:
            # faulthandler's timer thread does not need the interpreter lock.
            faulthandler.dump_traceback_later(self._hang_s)
