"""Time, passed in: tests let hours go by at once."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock"]


class Clock:
    """The machine's clock. A test's clock overrides all three."""

    def now(self) -> datetime:
        """Wall clock, UTC: for what people read and other machines compare."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that only grow: for every duration on this machine."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
