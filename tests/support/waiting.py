"""Waiting for what other processes and threads do, on a machine that may be busy.

A test waits for a condition, never for a time. Its patience is long, for it only bounds a hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

__all__ = ["PATIENCE_S", "wait_for"]

T = TypeVar("T")

PATIENCE_S = 200.0
"""For one thing that takes a moment on an idle machine: the end of a process, a file, an answer."""


def wait_for(
    condition: Callable[[], T | Literal[False] | None], seconds: float = PATIENCE_S, *, every_s: float = 0.01
) -> T:
    """The condition's first true value. The test fails after ``seconds`` without one."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(every_s)
    return value
