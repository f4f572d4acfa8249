"""The container's health check: how long ago the heart last beat."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_the_check_ends_with_0_while_heartbeats_are_recent_and_else_with_1(tmp_path: Path) -> None:
    beat = tmp_path / "mtl-cloud" / "digits-1" / "0001" / BEAT

    def check() -> tuple[int, str]:
        command = [sys.executable, "-m", "mtl_cloud.supervise.health"]
        environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert check() == (1, "no heartbeat yet\n")
    beat.parent.mkdir(parents=True)
    beat.touch()
    code, message = check()
    assert (code, message.startswith("last heartbeat ")) == (0, True)
    os.utime(beat, (0, 0))
    assert check()[0] == 1
