"""Retries with exponential backoff and full jitter, within a total time.

Full jitter (a pause is drawn uniformly between 0 and the bound) spreads the requests of many clients that failed at the
same moment: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError, StorageRefusedError

__all__ = ["retry"]

T = TypeVar("T")
_FINAL = (AlreadyExistsError, NotFoundError, StorageRefusedError)  # a retry would get the same answer


def retry(
    request: Callable[[], T],
    *,
    patience_s: float,
    first_s: float,
    longest_s: float,
    clock: Clock,
    draw: Callable[[float, float], float] = random.uniform,
) -> T:
    """The result of ``request``, which is retried while it raises ``StorageError``.

    The bound of the pauses doubles from ``first_s`` up to ``longest_s``. The last error is raised when the next pause
    would exceed ``patience_s`` in total; final answers (exists, not found, refused) are raised at once.
    """
    end, bound_s = clock.monotonic() + patience_s, first_s
    while True:
        try:
            return request()
        except _FINAL:
            raise
        except StorageError:
            pause_s = draw(0.0, bound_s)
            if clock.monotonic() + pause_s > end:
                raise
        clock.sleep(pause_s)
        bound_s = min(longest_s, bound_s * 2)
