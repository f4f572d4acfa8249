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
from run_harness import is_running, wait_for

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
session = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if os.fork() == 0:
    if os.fork() == 0:  # a daemon: its parent ends at once
        os.setsid()
        open(sys.argv[1] + ".daemon", "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
while not os.path.exists(sys.argv[1] + ".daemon"):
    time.sleep(0.01)
daemon = open(sys.argv[1] + ".daemon").read()
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {session.pid} {daemon}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(float(sys.argv[2]))
"""


def _pids(path: Path) -> list[int]:
    return [int(word) for word in wait_for(lambda: path.exists() and path.read_text().split())]


@pytest.mark.parametrize("code", [0, 1, 75, 255])
def test_the_exit_code_is_the_childs(code: int, start: Start) -> None:
    process = start(PYTHON, "-c", f"raise SystemExit({code})")
    assert process.wait(10) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_guard_dies_by_the_signal_that_its_child_died_by(number: int, start: Start) -> None:
    process = start(PYTHON, "-c", f"import os; os.kill(os.getpid(), {number})")
    assert process.wait(10) == -number


def test_a_command_that_cannot_start_is_named_and_ends_with_127(start: Start) -> None:
    process = start("/no/such/program")
    assert process.wait(10) == 127
    assert b"cannot start '/no/such/program': No such file" in present(process.stdout).read()


def test_a_closed_lifeline_kills_other_sessions_and_daemons_too(tmp_path: Path, start: Start) -> None:
    process = start(PYTHON, "-c", TREE, str(tmp_path / "pids"), "60")
    pids = _pids(tmp_path / "pids")
    assert all(is_running(pid) for pid in pids)
    present(process.stdin).close()
    assert process.wait(10) == -signal.SIGKILL
    assert not any(is_running(pid) for pid in pids)


def test_a_child_that_ends_by_itself_leaves_no_process_behind(tmp_path: Path, start: Start) -> None:
    process = start(PYTHON, "-c", TREE, str(tmp_path / "pids"), "0")
    assert process.wait(10) == 0
    assert not any(is_running(pid) for pid in _pids(tmp_path / "pids"))


def test_the_child_dies_with_a_guard_that_is_killed(tmp_path: Path, start: Start) -> None:
    process = start(PYTHON, "-c", TREE, str(tmp_path / "pids"), "60")
    child, session, daemon = _pids(tmp_path / "pids")
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
    assert process.wait(10) == 75


def test_shared_memory_of_a_killed_child_is_freed(start: Start, tmp_path: Path) -> None:
    code = """
import os, sys
from multiprocessing.shared_memory import SharedMemory
print(SharedMemory(create=True, size=1000).name, flush=True)
os.kill(os.getpid(), 9)
"""
    process = start(PYTHON, "-c", code)
    name = present(process.stdout).readline().decode().strip()
    assert process.wait(10) == -signal.SIGKILL
    assert not (Path("/dev/shm") / name.lstrip("/")).exists()
