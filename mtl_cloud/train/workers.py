"""How loader workers end: whoever waits for a dead one is told who it was, and what probably killed it.

Workers are children of their fork server, so no SIGCHLD of theirs reaches the trainer: torch's loader looks every five
seconds, and then knows only that one is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from mtl_cloud.errors import TrainingError, WorkerDiedError

__all__ = ["deaths_explained"]

_HINTS = {
    signal.SIGKILL: "out of memory? lower training.loader_workers, or take a machine with more of it",
    signal.SIGBUS: "out of shared memory? give the container more (--shm-size), or lower training.loader_workers",
}
_LATE_S = 1.0
"""A worker's end may be seen on its pipes before its fork server has told of it."""


@contextmanager
def deaths_explained(batches: object) -> Iterator[None]:
    """Inside, errors that a dead worker of the loader's iterator ``batches`` has caused come out as its death.

    Raises
    ------
    WorkerDiedError
        A signal ended it.
    TrainingError
        It left with an exit code: its trace is in the log.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        workers: list[BaseProcess] = getattr(batches, "_workers", [])  # torch tells of them nowhere else
        wait([worker.sentinel for worker in workers], _LATE_S)
        dead = next((worker for worker in workers if worker.exitcode), None)
        if dead is None:
            raise
        raise _death(dead) from error


def _death(worker: BaseProcess) -> TrainingError:
    code = worker.exitcode or 0
    if code > 0:
        return TrainingError(
            f"loader worker {worker.pid} ended with code {code}", hint="its own message is in the log before this one"
        )
    number = signal.Signals(-code)
    return WorkerDiedError(f"loader worker {worker.pid} was ended by {number.name}", hint=_HINTS.get(number))
