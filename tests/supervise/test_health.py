"""The container's health check: how long ago the heart last beat."""

from __future__ import annotations

import os
from pathlib import Path

from mtl_cloud.supervise.health import BEAT, silence_s


def test_the_newest_beat_of_all_attempts_counts(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert silence_s(environ, 100.0) is None
    for attempt, at in (("0001", 40.0), ("0002", 70.0)):
        beat = tmp_path / "mtl-cloud" / "digits-1" / attempt / BEAT
        beat.parent.mkdir(parents=True)
        beat.touch()
        os.utime(beat, (at, at))
    assert silence_s(environ, 100.0) == 30.0
