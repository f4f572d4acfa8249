"""Process 1 of a container: it reaps orphans and forwards signals to the supervisor, its child.

The kernel gives process 1 no default signal handlers, and makes it the parent of all orphans. The supervisor itself
cannot reap them: a ``wait`` for any child would take the exit codes that ``subprocess`` waits for.
"""

from __future__ import annotations

import os
import signal

from mtl_cloud.supervise.guard import reap

__all__ = ["become_init"]

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def become_init() -> None:
    """Fork. The child returns; the parent stays as its init process and exits with the child's exit code.

    Must be called before any thread is started.
    """
    handled = {signal.SIGCHLD, *_FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(handled)
        if number != signal.SIGCHLD:
            os.kill(child, number)  # not reaped yet, so the number is still its own
            continue
        status = reap(child)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
