"""``python -m mtl_cloud.supervise.health``: the container's health check. Healthy: the heart has beaten of late.

A beat counts when the storage has taken it, so an unhealthy container is one whose run record has fallen silent.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from mtl_cloud.user_dirs import default_scratch

__all__ = ["BEAT", "silence_s"]

BEAT = "beat"
"""The file in an attempt's scratch whose age is that of the last heartbeat."""
HEALTHY_S = 90.0


def silence_s(environ: Mapping[str, str], now: float) -> float | None:
    """Seconds since the last beat of any run of this container, at ``now`` (seconds of the epoch); None before one."""
    beats = default_scratch("", environ).glob(f"*/*/{BEAT}")
    return min((now - beat.stat().st_mtime for beat in beats), default=None)


def main() -> int:
    """0: healthy; 1: not."""
    silence = silence_s(os.environ, time.time())
    words = "no heartbeat yet" if silence is None else f"last heartbeat {silence:.0f} s ago"
    sys.stdout.write(f"{words}\n")
    return 0 if silence is not None and silence < HEALTHY_S else 1


if __name__ == "__main__":
    sys.exit(main())
