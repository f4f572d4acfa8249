"""Run the trainer, and kill its whole process tree when the supervisor is gone.

``python guard.py COMMAND…`` has a pipe from the supervisor as standard input: the *lifeline*. When the pipe closes,
because the supervisor closed it or died in any way, the guard kills every process below it. Otherwise the guard ends as
its child ended: with the same exit code, or by the same signal.

A process group is not enough: torchrun starts each worker in a session of its own, and its workers become orphans when
torchrun is killed. On Linux the guard is therefore the *subreaper* of the tree: orphans become its children, so that
walking down from the guard finds all of them. On other systems it kills the child's process group.

This file is run by its path in an isolated interpreter: it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_LIFELINE = 0
_REAP_S = 0.02  # a process needs a moment to die
_HELPERS_S = 1.0
_NOT_FOUND = 127  # as shells report it


def main(command: list[str]) -> int:
    """Returns the exit code of the command; does not return when a signal ended the command."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup = _wakeup_pipe()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_the_guard,  # noqa: PLW1509  # safe: the guard, unlike the supervisor, has one thread
        )
    except OSError as error:
        sys.stderr.write(f"mtl-cloud: cannot start {command[0]!r}: {error.strerror}\n")
        return _NOT_FOUND
    signal.signal(signal.SIGTERM, lambda number, _: _signal_group(child.pid, number))
    status = _wait(child.pid, wakeup)
    if status is not None:
        _wait_for_helpers()
    _kill_tree(child.pid)
    child.returncode = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    return child.returncode if child.returncode >= 0 else _die_by(-child.returncode)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with_the_guard() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wakeup_pipe() -> int:
    """A descriptor that becomes readable when a signal arrives, so that one ``select`` waits for everything."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end


def _wait(child: int, wakeup: int) -> int | None:
    """Wait status of the child, or None when the lifeline closed first."""
    while True:
        status = reap(child)
        if status is not None:
            return status
        ready, _, _ = select.select([_LIFELINE, wakeup], [], [])
        if _LIFELINE in ready:
            return None
        os.read(wakeup, 4096)


def reap(child: int | None = None) -> int | None:
    """Reap all ended children, adopted orphans included. Returns the wait status of ``child`` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found = status if pid == child else found


def _wait_for_helpers() -> None:
    """Give helper processes time to end: multiprocessing's resource tracker, for one, then frees shared memory."""
    end = time.monotonic() + _HELPERS_S
    while _descendants(os.getpid()) and time.monotonic() < end:
        select.select([], [], [], _REAP_S)
        reap()


def _kill_tree(child: int) -> None:
    _signal_group(child, signal.SIGKILL)
    while descendants := _descendants(os.getpid()):
        for pid in descendants:
            _signal(pid, signal.SIGKILL)
        select.select([], [], [], _REAP_S)
        reap()


def _descendants(root: int) -> list[int]:
    """All running processes below ``root``. Zombies that only their own parent can reap do not count."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name, in parentheses, may hold anything: fields are counted from the last ")".
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    return [pid for pid in parents if _is_below(pid, root, parents)]


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == root:
            return True
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(child, number)


def _die_by(number: int) -> int:
    """End by the signal that ended the child, without a second core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
