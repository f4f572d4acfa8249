"""``python -m mtl_cloud.supervise.health``: the container's health check, which passes while heartbeats are recent.

A heartbeat counts once the storage has accepted it, so in an unhealthy container the run record is not updated.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from mtl_cloud.user_dirs import default_scratch

__all__ = ["BEAT", "silence_s"]

BEAT = "beat"
"""The file in an attempt's scratch folder whose age is that of the last heartbeat."""
HEALTHY_S = 90.0


def silence_s(environ: Mapping[str, str], now: float) -> float | None:
    """Seconds from the last heartbeat in this container to ``now`` (seconds since the epoch); None before the first."""
    beats = default_scratch("", environ).glob(f"*/*/{BEAT}")
    return min((now - beat.stat().st_mtime for beat in beats), default=None)


def main() -> int:
    """Returns 0 when healthy, 1 otherwise."""
    silence = silence_s(os.environ, time.time())
    message = "no heartbeat yet" if silence is None else f"last heartbeat {silence:.0f} s ago"
    sys.stdout.write(f"{message}\n")
    return 0 if silence is not None and silence < HEALTHY_S else 1


if __name__ == "__main__":
    sys.exit(main())
