"""Fake trainers that implement the supervisor's interface, and real supervisors that run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

from mtl_cloud.clock import Clock
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.storage import Storage

FAST = SupervisorOptions(grace_s=60, kill_after_s=0.3, tick_s=0.02, poll_s=0.1, first_s=0.1, last_s=0.1, patience_s=60)
"""Short intervals. The grace is long: a trainer that saves at once ends it, on however busy a machine."""

START = datetime(2026, 1, 1, tzinfo=UTC)
"""The time at which a handmade run begins, and ``FakeClock`` too."""


def at(seconds: float) -> str:
    """ISO 8601, ``seconds`` after ``START``."""
    return (START + timedelta(seconds=seconds)).isoformat()


PLAN = PlanRecord(
    run_id="digits-1",
    name="digits",
    created_at=START.isoformat(),
    backend="local",
    storage="",
    command=["python", "-c", "print('done')"],
    env={},
    processes=1,
    rounds=2,
)

PRELUDE = """
import os, signal, sys, time
from mtl_cloud.runs.scratch import Failure, Scratch
scratch, attempt = Scratch.from_environ(os.environ), int(os.environ["MTL_CLOUD_ATTEMPT"])
def work(seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if scratch.stop_reason():
            print("saved", flush=True)
            sys.exit(75)
        time.sleep(0.01)
def stay_until(path):
    while not os.path.exists(path):
        time.sleep(0.01)
"""


def make_run(storage: Storage, code: str = "", *, max_restarts: int = 3, **plan: Any) -> RunRecord:
    """A run whose trainer is ``code``, after ``PRELUDE``, which defines ``scratch``, ``work()`` and more."""
    command = {"command": ["python", "-c", PRELUDE + code]} if code else {}
    made = replace(PLAN, **{"storage": storage.url, **command, **plan})
    run = RunRecord(storage, made.run_id)
    spec = {"name": made.name, "compute": {"backend": "local", "max_restarts": max_restarts}}
    run.create(made, spec_yaml=b"name: digits\n", spec_json=json.dumps(spec).encode())
    return run


def supervisor_flags(run: RunRecord, scratch: Path, *flags: str, attempt: int = 1) -> list[str]:
    """A supervisor's arguments, with short intervals."""
    argv = ["--storage", run.storage.url, "--run-id", run.run_id, "--attempt", str(attempt)]
    return [*argv, "--scratch", str(scratch), *FAST.to_flags(), *flags]


def supervisor_argv(run: RunRecord, scratch: Path, *flags: str, attempt: int = 1) -> list[str]:
    """The command of a supervisor with short intervals."""
    return [sys.executable, "-m", "mtl_cloud.supervise", *supervisor_flags(run, scratch, *flags, attempt=attempt)]


def start_supervisor(run: RunRecord, scratch: Path, *flags: str, attempt: int = 1) -> subprocess.Popen[str]:
    """A supervisor as it runs in a container; its messages are in ``.stderr``."""
    return subprocess.Popen(supervisor_argv(run, scratch, *flags, attempt=attempt), stderr=subprocess.PIPE, text=True)


def is_running(pid: int) -> bool:
    """Whether a process of that id is running and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def logged(run: RunRecord, text: str, attempt: int = 1) -> Callable[[], bool]:
    """A condition: the text is in the attempt's shipped log."""
    return lambda: text.encode() in run.read_log(attempt)


def start_at_terminal(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """A ``Popen`` that Ctrl-C and its terminal's end reach, as they reach a program that a user starts.

    A child inherits the signals that its parent ignores, and tests that run by ``nohup`` or in the background of a
    script ignore these two.
    """
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        return subprocess.Popen(command, **options)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def no_cloud_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


class FakeClock(Clock):
    """A clock that advances only by ``sleep``. Actions scheduled with ``at`` run when a sleep passes their time."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._planned: list[tuple[float, Callable[[], object]]] = []
        self.seconds = 0.0
        self.pauses: list[float] = []
        """The duration of each sleep."""

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self._planned.append((seconds, action))

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        end = self.seconds + seconds
        for at, action in sorted((plan for plan in self._planned if plan[0] <= end), key=itemgetter(0)):
            self.seconds = max(self.seconds, at)
            action()
        self._planned = [plan for plan in self._planned if plan[0] > end]
        self.seconds = end
