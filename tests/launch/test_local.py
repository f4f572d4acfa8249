"""The local launcher: real detached supervisors."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from narrowing import present
from run_harness import FAST, is_running, make_run, no_cloud_environ, start_at_terminal
from waiting import PATIENCE_S, wait_for

from mtl_cloud.clock import Clock
from mtl_cloud.errors import LaunchError
from mtl_cloud.launch import BackendState, RunHandle
from mtl_cloud.launch.local import LocalLauncher, _arguments_by_ps, _arguments_in_proc
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, Heartbeat
from mtl_cloud.storage import FolderStorage

BACKGROUND = """
import fcntl, os, sys, termios, time
from run_harness import FAST
from mtl_cloud.launch.local import LocalLauncher
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import open_storage
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
launcher = LocalLauncher(settings=FAST)
launcher.submit(launcher.prepare(RunRecord(open_storage(sys.argv[1]), "digits-1").plan()))
print("submitted", flush=True)
time.sleep(600)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**no_cloud_environ(), "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def launcher(environ: dict[str, str]) -> LocalLauncher:
    return LocalLauncher(environ=environ, settings=FAST)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunRecord]:
    """A run whose trainer works until it is asked to stop, in any attempt."""
    run = make_run(FolderStorage(tmp_path / "storage"), "print('pid', os.getpid(), flush=True); work()")
    yield run
    for attempt in run.attempts():
        if attempt.host == socket.gethostname() and is_running(attempt.pid):
            os.kill(attempt.pid, signal.SIGKILL)


def _submit(launcher: LocalLauncher, run: RunRecord) -> RunHandle:
    return launcher.submit(launcher.prepare(run.plan()))


def _trainer_pid(run: RunRecord, attempt: int) -> int:
    log = wait_for(lambda: b"pid " in run.read_log(attempt) and run.read_log(attempt))
    return int(log.split(b"pid ")[1].split()[0])


def test_the_request_is_the_supervisors_command(launcher: LocalLauncher, run: RunRecord, tmp_path: Path) -> None:
    scratch = str(tmp_path / "state" / "mtl-cloud" / "digits-1")
    command = [sys.executable, "-m", "mtl_cloud.supervise", "--storage", run.storage.url, "--run-id", "digits-1"]
    plain = LocalLauncher(environ={"XDG_STATE_HOME": str(tmp_path / "state")})
    expected = {"argv": [*command, "--scratch", scratch, "--last-s", "2.0"]}
    assert plain.prepare(run.plan()).request == expected


def test_many_submits_at_once_start_one(launcher: LocalLauncher, run: RunRecord) -> None:
    with ThreadPoolExecutor(4) as pool:
        handles = list(pool.map(lambda _: _submit(launcher, run), range(4)))
    assert handles == [RunHandle.of(run.plan())] * 4
    _trainer_pid(run, 1)
    assert len(run.attempts()) == 1
    assert run.read_log(1).count(b"pid ") == 1


def test_a_dead_run_goes_on_with_its_next_attempt(launcher: LocalLauncher, run: RunRecord) -> None:
    handle = _submit(launcher, run)
    trainer = _trainer_pid(run, 1)
    os.kill(run.attempts()[0].pid, signal.SIGKILL)
    wait_for(lambda: launcher.describe(handle) is BackendState.ENDED)
    _submit(launcher, run)
    assert _trainer_pid(run, 2) != trainer
    assert not is_running(trainer)
    assert len(run.attempts()) == 2


def test_a_run_that_is_over_is_left_alone(launcher: LocalLauncher, tmp_path: Path) -> None:
    run = make_run(FolderStorage(tmp_path / "storage"), "print('over')")
    _submit(launcher, run)
    wait_for(run.result)
    _submit(launcher, run)
    assert len(run.attempts()) == 1


def test_the_run_survives_its_terminal(run: RunRecord, environ: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), environ.get("PYTHONPATH", "")])
    with start_at_terminal(
        [sys.executable, "-c", BACKGROUND, run.storage.url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**environ, "PYTHONPATH": path},
    ) as shell:
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            assert terminal.readline() == b"submitted\r\n"
            trainer = _trainer_pid(run, 1)
        assert shell.wait(PATIENCE_S) == -signal.SIGHUP
    beat = run.heartbeat(1)
    wait_for(lambda: run.heartbeat(1) != beat)
    assert is_running(trainer)


def test_a_supervisor_that_cannot_start_is_an_error_with_its_last_words(
    launcher: LocalLauncher, run: RunRecord
) -> None:
    submission = launcher.prepare(run.plan())
    broken = replace(submission, request={"argv": [sys.executable, "-c", "raise SystemExit('no luck')", "digits-1"]})
    with pytest.raises(LaunchError, match="digits-1: the supervisor did not start: no luck"):
        launcher.submit(broken)


class Later(Clock):
    def __init__(self, seconds: float) -> None:
        self._later = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._later


def _elsewhere(run: RunRecord) -> None:
    now = datetime.now(UTC).isoformat()
    run.claim(AttemptRecord(number=1, started_at=now, host="elsewhere", pid=os.getpid(), backend="local"))
    run.write_heartbeat(1, Heartbeat(at=now, phase="training"))


def test_a_run_that_lives_on_another_machine_is_adopted_but_cannot_be_stopped_here(
    launcher: LocalLauncher, run: RunRecord
) -> None:
    _elsewhere(run)
    handle = _submit(launcher, run)
    assert launcher.describe(handle) is BackendState.RUNNING
    assert len(run.attempts()) == 1
    with pytest.raises(LaunchError, match="digits-1: runs on elsewhere"):
        launcher.stop(handle)


def test_a_run_whose_other_machine_has_gone_silent_goes_on_here(environ: dict[str, str], run: RunRecord) -> None:
    _elsewhere(run)
    _submit(LocalLauncher(environ=environ, settings=FAST, clock=Later(seconds=400)), run)
    assert [attempt.host for attempt in run.attempts()] == ["elsewhere", socket.gethostname()]


def test_both_ways_to_a_process_s_arguments_agree(tmp_path: Path) -> None:
    """``/proc`` on Linux, and ``ps``, which macOS has too."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "digits-1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(lambda: "digits-1" in _arguments_in_proc(process.pid))  # until exec has happened
        assert "digits-1" in _arguments_by_ps(process.pid)
        present(process.stdin).close()
        process.wait()
        assert (_arguments_in_proc(process.pid), _arguments_by_ps(process.pid)) == ([], [])
