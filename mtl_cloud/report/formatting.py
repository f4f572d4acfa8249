"""Number formats: one each for percentages, plain numbers, durations, dollars and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

__all__ = ["dollars", "duration", "instant", "number", "percent", "sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_MISSING = "—"


def number(value: float | None) -> str:
    """Four significant digits, all digits of integers: ``0.1235``, ``12.35``, ``1204``."""
    if value is None:
        return _MISSING
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """A fraction as ``91.3 %``."""
    return _MISSING if value is None else f"{100 * value:.1f} %"


def dollars(value: float | None) -> str:
    """``$12.40``; under a dollar ``$0.123``, so that short runs do not all show ``$0.00``."""
    if value is None:
        return _MISSING
    return f"${value:.2f}" if value >= 0.9995 or value == 0 else f"${value:.3f}"


def duration(seconds: float | None) -> str:
    """The two largest units: ``2 d 3 h``, ``1 h 12 min``, ``4 min 05 s``, ``8.2 s``."""
    if seconds is None:
        return _MISSING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def instant(text: str) -> str:
    """An ISO 8601 time as ``2026-11-23 14:55 UTC``; text that cannot be parsed is returned unchanged."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """A series in block characters from lowest to highest: the newest ``width`` values, with spaces for gaps."""
    shown = values[-width:]
    known = [value for value in shown if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if value is None else _block(value, low, span) for value in shown)


def _block(value: float, low: float, span: float) -> str:
    if not math.isfinite(value):
        return "!"
    place = (value - low) / span if span else 0.5
    return _BLOCKS[min(len(_BLOCKS) - 1, int(place * len(_BLOCKS)))]
