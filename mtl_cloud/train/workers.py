"""How loader workers end: whoever waits for a dead one is told who it was, and what probably killed it.

Workers are children of their fork server, so no SIGCHLD of theirs reaches the trainer: torch's loader looks every five
seconds, and then knows only that one is gone. And it does not look at all while it reads the rest of a batch that will
never come, because the worker died in the middle of sending it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from mtl_cloud.errors import TrainingError, WorkerDiedError

__all__ = ["deaths_explained"]

_HINTS = {
    signal.SIGKILL: "out of memory? lower training.loader_workers, or take a machine with more of it",
    signal.SIGBUS: "out of shared memory? give the container more (--shm-size), or lower training.loader_workers",
}
_LATE_S = 1.0
"""A worker's end may be seen on its pipes before its fork server has told of it."""
_LOOK_S = 1.0


@contextmanager
def deaths_explained(batches: Any, *, patience_s: float = 15.0) -> Iterator[None]:
    """Inside, errors that a dead worker of the loader's iterator ``batches`` has caused come out as its death.

    A loader that has not found out by itself within ``patience_s`` is made to.

    Raises
    ------
    WorkerDiedError
        A signal ended it.
    TrainingError
        It left with an exit code: its trace is in the log.
    """
    workers: list[BaseProcess] = getattr(batches, "_workers", [])  # torch tells of them nowhere else
    dead: list[BaseProcess] = []
    over = threading.Event()
    if workers:
        watch = (workers, batches._worker_result_queue, dead, over, patience_s)  # noqa: SLF001  # nor of this
        threading.Thread(target=_watch, args=watch, name="loader-workers", daemon=True).start()
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        wait([worker.sentinel for worker in workers], _LATE_S)
        first = next((worker for worker in (*dead, *workers) if worker.exitcode), None)
        if first is None:
            raise
        raise _death(first) from error
    finally:
        over.set()


def _watch(
    workers: list[BaseProcess], results: Any, dead: list[BaseProcess], over: threading.Event, patience_s: float
) -> None:
    """Look for the ``dead``, and let the reader of ``results`` go if it is not ``over`` in time.

    An end of file does that, once nobody is left who could write. Exit codes are not looked at: they can be read once.
    """
    while not dead:
        if over.wait(_LOOK_S):
            return
        ended = wait([worker.sentinel for worker in workers], 0)
        dead += [worker for worker in workers if worker.sentinel in ended]
    if over.wait(patience_s):
        return
    for worker in workers:
        if worker not in dead:
            worker.kill()
    with contextlib.suppress(OSError):
        results._writer.close()  # noqa: SLF001


def _death(worker: BaseProcess) -> TrainingError:
    code = worker.exitcode or 0
    if code > 0:
        return TrainingError(
            f"loader worker {worker.pid} ended with code {code}", hint="its own message is in the log before this one"
        )
    number = signal.Signals(-code)
    return WorkerDiedError(f"loader worker {worker.pid} was ended by {number.name}", hint=_HINTS.get(number))
