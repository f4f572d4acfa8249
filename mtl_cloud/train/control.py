"""The trainer's end of its wire to the supervisor."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mtl_cloud.runs.scratch import Scratch

__all__ = ["Channel"]

REPORT_EVERY_S = 1.0


class Channel:
    """One process's end: only the leading process reports; each looks for the wish to stop."""

    def __init__(self, scratch: Scratch, *, leads: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._scratch = scratch
        self._leads = leads
        self._clock = clock
        self._reported_at = float("-inf")
        self._signalled = False
        self._hang_s: float | None = None

    def listen(self, hang_s: float | None = None) -> None:
        """Take SIGTERM as a wish to save and stop: torchrun forwards it, and so does a person's ``kill``.

        From now on, after ``hang_s`` seconds without a sign of life, all threads' stack traces go to standard error.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        self._hang_s = hang_s
        self._live()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def stop_wished(self) -> bool:
        """Has the supervisor, or a SIGTERM, asked this process to save and stop?"""
        return self._signalled or self._scratch.stop_reason() is not None

    def take_save_wish(self) -> bool:
        """Has the supervisor asked the leading process to save now? Each wish is heard once."""
        return self._leads and self._scratch.take_save_request()

    def report_is_due(self) -> bool:
        """About once a second: a report costs a wait for the device."""
        return self._clock() - self._reported_at >= REPORT_EVERY_S

    def report(self, phase: str, **progress: Any) -> None:
        """Replace the supervisor's picture of this trainer."""
        self._live()
        if not self._leads:
            return
        try:
            self._scratch.write_progress(phase, **progress)
        except OSError:  # a full disk is no reason to stop: the old word is made new
            self._scratch.give_sign_of_life()

    def give_sign_of_life(self) -> None:
        """In long work that has nothing to report; about once a second is enough, and more cost nothing."""
        if self.report_is_due():
            self._live()
            if self._leads:
                self._scratch.give_sign_of_life()

    def _live(self) -> None:
        self._reported_at = self._clock()
        if self._hang_s is not None:
            # It watches from a thread of its own, which needs no interpreter lock.
            faulthandler.dump_traceback_later(self._hang_s)
