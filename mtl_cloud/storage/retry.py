"""Asking again: pauses that grow, with full jitter, within a total time.

Full jitter (a pause is drawn evenly from nothing up to the bound) spreads the requests of many clients that failed at
the same moment: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError, StorageRefusedError

__all__ = ["persistently"]

T = TypeVar("T")
_ANSWERS = (AlreadyExistsError, NotFoundError, StorageRefusedError)  # the storage works, and will say the same again


def persistently(
    request: Callable[[], T],
    *,
    patience_s: float,
    first_s: float,
    longest_s: float,
    clock: Clock,
    draw: Callable[[float, float], float] = random.uniform,
) -> T:
    """What ``request`` returns, which is made again while it raises ``StorageError``.

    The bound of the pauses doubles from ``first_s`` up to ``longest_s``. The last error is raised when the next pause
    would go beyond ``patience_s`` in all; answers (taken, absent, refused) are raised at once.
    """
    end, bound_s = clock.monotonic() + patience_s, first_s
    while True:
        try:
            return request()
        except _ANSWERS:
            raise
        except StorageError:
            pause_s = draw(0.0, bound_s)
            if clock.monotonic() + pause_s > end:
                raise
        clock.sleep(pause_s)
        bound_s = min(longest_s, bound_s * 2)
