"""Ratios, means and confidence intervals that are None if there is nothing to compute them from."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["mean_known", "ratio", "wilson_interval"]

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None when all are."""
    known = [value for value in values if value is not None]
    return ratio(sum(known), len(known))


def wilson_interval(hits: float, n: float) -> tuple[float, float] | tuple[None, None]:
    """95 % score interval of a proportion (Wilson 1927), valid for few samples and for proportions near 0 and 1."""
    if not n:
        return None, None
    share, z2 = hits / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
