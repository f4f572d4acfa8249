"""The clock, passed as an argument so that tests can simulate hours."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock"]


class Clock:
    """The machine's clock. A test's clock overrides all three."""

    def now(self) -> datetime:
        """Wall-clock time in UTC, for records that people read and other machines compare."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Monotonic seconds, for durations on this machine."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
