"""The local backend: a supervisor on this machine, detached from its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle, Submission, record_of
from mtl_cloud.names import SUPERVISOR_MODULE, SupervisorFlag
from mtl_cloud.runs.attempts import read_attempt
from mtl_cloud.runs.dataclass_json import FieldPath, from_json, to_json
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, PlanRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.user_dirs import default_scratch, tail

__all__ = ["LocalLauncher"]

_START_S = 60.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class ProcessRequest:
    """The request of a submission to this machine."""

    argv: tuple[str, ...]
    """Command line of the supervisor, without the attempt's number."""


class LocalLauncher:
    """Runs are processes of this user. The claim of an attempt is the mutex: a supervisor without the claim exits."""

    backend = "local"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        python: str = sys.executable,
        settings: SupervisorOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._environ = environ
        self._python = python
        self._settings = settings or SupervisorOptions(last_s=2.0)  # heartbeats to a folder are cheap
        self._clock = clock or Clock()

    def prepare(self, plan: PlanRecord) -> Submission:
        argv = [self._python, "-m", SUPERVISOR_MODULE]
        argv += [SupervisorFlag.STORAGE, plan.storage, SupervisorFlag.RUN_ID, plan.run_id]
        argv += [SupervisorFlag.SCRATCH, str(self._folder(plan.run_id)), *self._settings.to_flags()]
        return Submission(RunHandle.of(plan), to_json(ProcessRequest(tuple(argv))))

    def submit(self, submission: Submission) -> RunHandle:
        run = record_of(submission.handle)
        if run.result() is None:
            attempts = run.attempts()
            if not attempts or not self._is_alive(run, attempts[-1]):
                self._start(run, submission, attempt=len(attempts) + 1)
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        run = record_of(handle)
        return BackendState.ENDED if self._living(run) is None else BackendState.RUNNING

    def stop(self, handle: RunHandle) -> None:
        run = record_of(handle)
        attempt = self._living(run)
        if attempt is None:
            return
        if attempt.host != socket.gethostname():
            raise LaunchError(
                f"{run.run_id}: runs on {attempt.host}, and this is {socket.gethostname()}",
                hint=f"mtl-cloud cancel {run.run_id} stops it through the run record",
            )
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(attempt.pid, signal.SIGTERM)

    # --- liveness ---

    def _living(self, run: RunRecord) -> AttemptRecord | None:
        attempts = run.attempts()
        return attempts[-1] if attempts and self._is_alive(run, attempts[-1]) else None

    def _is_alive(self, run: RunRecord, attempt: AttemptRecord) -> bool:
        """On this machine, check the process; on another machine with the same storage, the heartbeat."""
        if attempt.host == socket.gethostname():
            return _is_supervisor(attempt.pid, run.run_id)
        return read_attempt(run, attempt).is_alive(self._clock.now())

    # --- starting ---

    def _start(self, run: RunRecord, submission: Submission, attempt: int) -> None:
        """Start a supervisor, and wait until it, or one that started at the same time, has claimed the attempt."""
        log = self._folder(run.run_id) / "supervisor.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        request = from_json(ProcessRequest, submission.request, FieldPath(run.run_id, "submission"))
        pid = self._spawn([*request.argv, SupervisorFlag.ATTEMPT, str(attempt)], log)
        end = self._clock.monotonic() + _START_S
        while True:
            may_claim = _has_not_ended(pid) and self._clock.monotonic() < end
            if (run.owner() or 0) >= attempt:
                return
            if not may_claim:
                words = " ".join(tail(log, 1)) or f"it said nothing in {log}"
                raise LaunchError(f"{run.run_id}: the supervisor did not start: {words}", hint=f"its log is {log}")
            self._clock.sleep(_LOOK_S)

    def _spawn(self, argv: list[str], log: Path) -> int:
        """Start a process in a new session, so that it survives the terminal.

        ``posix_spawn`` instead of ``Popen``, which expects to be waited for.
        """
        return os.posix_spawn(
            argv[0],
            argv,
            self._environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    def _folder(self, run_id: str) -> Path:
        return default_scratch(run_id, self._environ)


def _has_not_ended(child: int) -> bool:
    """Whether ``child`` is a running child of this process; an ended child is reaped."""
    try:
        return os.waitpid(child, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _is_supervisor(pid: int, run_id: str) -> bool:
    """Whether the process is running and works on this run: its pid may have been reused."""
    _has_not_ended(pid)  # reap it, or it stays a zombie while this process runs
    arguments = _arguments_in_proc if Path("/proc/self/cmdline").exists() else _arguments_by_ps
    return run_id in arguments(pid)


def _arguments_in_proc(pid: int) -> list[str]:
    """The command line of a process; empty if there is none with that id."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _arguments_by_ps(pid: int) -> list[str]:
    """The same as ``_arguments_in_proc`` for systems without ``/proc`` (macOS)."""
    found = subprocess.run(["/bin/ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.split()
