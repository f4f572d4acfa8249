"""Process 1 of a container: reaps every orphan, and passes signals on to the supervisor, its child.

The kernel gives process 1 no default reaction to signals, and makes it the parent of all orphans. The supervisor itself
cannot reap them: a ``wait`` for anyone would take the exit codes that ``subprocess`` waits for.
"""

from __future__ import annotations

import os
import signal

__all__ = ["become_init"]

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def become_init() -> None:
    """Fork. The child returns; the parent stays as its init, and ends as the child ends.

    To be called before any thread is started.
    """
    heard = {signal.SIGCHLD, *_PASSED_ON}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(heard)
        if number != signal.SIGCHLD:
            os.kill(child, number)  # not reaped yet, so the number is still its own
            continue
        status = _reap(child)
        if status is not None:
            os._exit(status if status >= 0 else 128 - status)


def _reap(child: int) -> int | None:
    """Collect everyone who has died. The exit code of ``child`` if it is among them (negative: the signal)."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)
