"""How many examples a property test tries where each of them takes long."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["EXHAUSTIVE", "examples"]

EXHAUSTIVE = os.environ.get("MTL_CLOUD_TESTS") == "exhaustive"
"""These are the tests before a release, which may take hours."""
_TIMES = 20


def examples(number: int, *, reuse_fixtures: bool = False, **options: Any) -> settings:
    """Settings for so many examples, and for twenty times as many before a release.

    ``reuse_fixtures``: the test may be called again with the same fixtures, for no example leaves anything in them.
    """
    ignored = [HealthCheck.too_slow, *([HealthCheck.function_scoped_fixture] if reuse_fixtures else [])]
    return settings(max_examples=number * (_TIMES if EXHAUSTIVE else 1), suppress_health_check=ignored, **options)
