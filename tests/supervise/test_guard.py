"""The guard: its child's end is its own end, and nothing of the tree below it outlives its lifeline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from narrowing import present
from run_harness import is_running
from waiting import PATIENCE_S, wait_for

from mtl_cloud.supervise import guard

PYTHON = sys.executable


def _argv(*command: str) -> list[str]:
    return [PYTHON, "-I", "-S", guard.__file__, *command]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A function that starts a command behind a guard, with the lifeline in ``.stdin``."""
    with ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                _argv(*command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


Start = Callable[..., subprocess.Popen[bytes]]

TREE = """
import os, subprocess, sys, time
session = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
hear, tell = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:  # a daemon: its parent ends at once
        os.setsid()
        os.write(tell, str(os.getpid()).encode())
        time.sleep(600)
    os._exit(0)
print(os.getpid(), session.pid, os.read(hear, 100).decode(), flush=True)
time.sleep(float(sys.argv[1]))
"""


def _pids(process: subprocess.Popen[bytes]) -> list[int]:
    """Of the child, of its session and of its daemon, which the tree prints when all three live."""
    return [int(word) for word in present(process.stdout).readline().split()]


@pytest.mark.parametrize("code", [0, 1, 75, 255])
def test_the_exit_code_is_the_childs(code: int, start: Start) -> None:
    process = start(PYTHON, "-c", f"raise SystemExit({code})")
    assert process.wait(PATIENCE_S) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_guard_dies_by_the_signal_that_its_child_died_by(number: int, start: Start) -> None:
    process = start(PYTHON, "-c", f"import os; os.kill(os.getpid(), {number})")
    assert process.wait(PATIENCE_S) == -number


def test_a_command_that_cannot_start_is_named_and_ends_with_127(start: Start) -> None:
    process = start("/no/such/program")
    assert process.wait(PATIENCE_S) == 127
    assert b"cannot start '/no/such/program': No such file" in present(process.stdout).read()


def test_a_closed_lifeline_kills_other_sessions_and_daemons_too(start: Start) -> None:
    process = start(PYTHON, "-c", TREE, "600")
    pids = _pids(process)
    assert len(pids) == 3
    assert all(is_running(pid) for pid in pids)
    present(process.stdin).close()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not any(is_running(pid) for pid in pids)


def test_a_child_that_ends_by_itself_leaves_no_process_behind(start: Start) -> None:
    process = start(PYTHON, "-c", TREE, "0")
    assert process.wait(PATIENCE_S) == 0
    pids = _pids(process)
    assert len(pids) == 3
    assert not any(is_running(pid) for pid in pids)


def test_the_child_dies_with_a_guard_that_is_killed(start: Start) -> None:
    process = start(PYTHON, "-c", TREE, "600")
    child, session, daemon = _pids(process)
    process.kill()
    process.wait()
    wait_for(lambda: not is_running(child))
    for pid in (session, daemon):  # nothing can reach those but the process 1 of a container
        os.kill(pid, signal.SIGKILL)


def test_sigterm_reaches_the_child(start: Start) -> None:
    process = start(
        PYTHON,
        "-c",
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True); signal.pause()",
    )
    assert present(process.stdout).readline() == b"1\n"
    process.terminate()
    assert process.wait(PATIENCE_S) == 75


def test_shared_memory_of_a_killed_child_is_freed(start: Start, tmp_path: Path) -> None:
    code = """
import os, sys
from multiprocessing.shared_memory import SharedMemory
print(SharedMemory(create=True, size=1000).name, flush=True)
os.kill(os.getpid(), 9)
"""
    process = start(PYTHON, "-c", code)
    name = present(process.stdout).readline().decode().strip()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not (Path("/dev/shm") / name.lstrip("/")).exists()
