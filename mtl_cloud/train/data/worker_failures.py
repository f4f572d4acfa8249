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
from dataclasses import dataclass, field
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
    if not workers:
        yield
        return
    watch = _Watch(workers, batches._worker_result_queue, patience_s)  # noqa: SLF001  # nor of this
    watch.start()
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        first = watch.first_dead()
        if first is None:
            raise
        raise _death(first) from error
    finally:
        watch.stop()


@dataclass
class _Watch:
    """Looks for dead ``workers``; whoever still waits for their ``results`` after ``patience_s`` is let go."""

    workers: list[BaseProcess]
    results: Any
    """The queue that they send batches by."""
    patience_s: float
    """From the first death on."""
    _dead: list[BaseProcess] = field(init=False, default_factory=list)
    """Those that were the first to end. The others may have been ended here."""
    _over: threading.Event = field(init=False, default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, name="loader-workers", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def first_dead(self) -> BaseProcess | None:
        """The worker that everything else followed from; None if all who ended did so in peace."""
        wait([worker.sentinel for worker in self.workers], _LATE_S)
        return next((worker for worker in (*self._dead, *self.workers) if worker.exitcode), None)

    def _run(self) -> None:
        while not self._dead:
            if self._over.wait(_LOOK_S):
                return
            self._dead = self._ended()
        if not self._over.wait(self.patience_s):
            self._let_go()

    def _ended(self) -> list[BaseProcess]:
        """Exit codes are not looked at: they can be read once."""
        ended = wait([worker.sentinel for worker in self.workers], 0)
        return [worker for worker in self.workers if worker.sentinel in ended]

    def _let_go(self) -> None:
        """Once nobody is left who could write, the reader sees an end of file."""
        for worker in self.workers:
            if worker not in self._dead:
                worker.kill()
        with contextlib.suppress(OSError):
            self.results._writer.close()  # noqa: SLF001


def _death(worker: BaseProcess) -> TrainingError:
    code = worker.exitcode or 0
    if code > 0:
        return TrainingError(
            f"loader worker {worker.pid} ended with code {code}", hint="its own message is in the log before this one"
        )
    number = signal.Signals(-code)
    return WorkerDiedError(f"loader worker {worker.pid} was ended by {number.name}", hint=_HINTS.get(number))
