"""Process 1 of a container: reaps every orphan, and passes signals on to the supervisor, its child.

The kernel gives process 1 no default reaction to signals, and makes it the parent of all orphans. The supervisor itself
cannot reap them: a ``wait`` for anyone would take the exit codes that ``subprocess`` waits for.
"""

from __future__ import annotations

import os
import signal

from mtl_cloud.supervise.guard import reap

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
        status = reap(child)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
