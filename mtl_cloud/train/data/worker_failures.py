"""Errors for loader workers that die: which worker, by which signal or code, and the likely cause.

Workers are children of their fork server, so the trainer gets no SIGCHLD for them. torch's loader checks every five
seconds, and reports only that a worker is gone. While it reads a batch whose worker died in the middle of sending it,
it does not check at all, and waits forever.
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

__all__ = ["explain_worker_deaths"]

_HINTS = {
    signal.SIGKILL: "out of memory? lower training.loader_workers, or take a machine with more memory",
    signal.SIGBUS: "out of shared memory? give the container more (--shm-size), or lower training.loader_workers",
}
_EXIT_REPORT_S = 1.0
"""A worker's pipes may close before its fork server reports the exit."""
_POLL_S = 1.0


@contextmanager
def explain_worker_deaths(batches: Any, *, patience_s: float = 15.0) -> Iterator[None]:
    """Turns errors caused by a dead worker of the loader's iterator ``batches`` into one that explains its death.

    A read that still blocks ``patience_s`` seconds after the first death is interrupted.

    Raises
    ------
    WorkerDiedError
        A signal killed the worker.
    TrainingError
        The worker exited with an error code; its traceback is in the log.
    """
    workers: list[BaseProcess] = getattr(batches, "_workers", [])  # torch has no public access to them
    if not workers:
        yield
        return
    watch = _Watch(workers, batches._worker_result_queue, patience_s)  # noqa: SLF001  # nor to this
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
    """Polls for dead ``workers``, and ``patience_s`` after the first death unblocks a reader of ``results``."""

    workers: list[BaseProcess]
    results: Any
    """The queue of their batches."""
    patience_s: float
    """Seconds, from the first death on."""
    _dead: list[BaseProcess] = field(init=False, default_factory=list)
    """Workers that ended first. This object may have killed the others."""
    _stopped: threading.Event = field(init=False, default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, name="loader-workers", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def first_dead(self) -> BaseProcess | None:
        """The worker that failed first; None if all that ended exited with code 0."""
        wait([worker.sentinel for worker in self.workers], _EXIT_REPORT_S)
        return next((worker for worker in (*self._dead, *self.workers) if worker.exitcode), None)

    def _run(self) -> None:
        while not self._dead:
            if self._stopped.wait(_POLL_S):
                return
            self._dead = self._ended()
        if not self._stopped.wait(self.patience_s):
            self._unblock_reader()

    def _ended(self) -> list[BaseProcess]:
        """The workers that have ended. It does not read exit codes, which can be read only once."""
        ended = wait([worker.sentinel for worker in self.workers], 0)
        return [worker for worker in self.workers if worker.sentinel in ended]

    def _unblock_reader(self) -> None:
        """Closes all writing ends of the queue, so that the reader gets an end of file."""
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
