"""Asynchronous checkpointing.

The training loop waits only while its state is copied into reused host memory. A thread does the rest.

**Memory.** One copy of the state; a second one from the first time that saves overlap, and never more; and what
``Checkpointer.commit`` needs for the parts being uploaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mtl_cloud.runs.schema import CheckpointManifest
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer
from mtl_cloud.train.checkpoint.snapshot import HostBuffers

__all__ = ["AsyncSaver"]

log = logging.getLogger(__name__)

_COPIES = 2


class AsyncSaver:
    """Commits the states of one attempt in the order of the ``save`` calls.

    A save that fails commits nothing. Its error is logged at once, and raised by ``drain`` or by the next ``save``,
    which starts its own commit first.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: list[tuple[Future[CheckpointManifest], HostBuffers]] = []
        self._idle: list[HostBuffers] = []
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is running. A save by the clock may then be skipped."""
        return any(not future.done() for future, _ in self._running)

    def save(self, state: Mapping[str, Any], *, step: int, round: int, reason: str) -> None:  # noqa: A002 - the field's name in the manifest
        """Copy ``state`` and start its commit; waits while two others are running.

        Raises
        ------
        RunTakenOverError, StorageError
            An earlier save failed.
        """
        self._collect(max_running=_COPIES - 1)
        buffers = self._idle.pop() if self._idle else HostBuffers()
        snapshot = self._checkpointer.snapshot(state, buffers)
        commit = self._thread.submit(self._checkpointer.commit, snapshot, step=step, round=round, reason=reason)
        commit.add_done_callback(_log_failure)
        self._running.append((commit, buffers))
        self._raise_error()

    def drain(self) -> None:
        """Wait until all saves have ended. Raises as ``save`` does if one has failed."""
        self._collect(max_running=0)
        self._raise_error()

    def close(self) -> None:
        """Wait until all saves have ended, without raising their errors, and free the memory."""
        self._collect(max_running=0)
        self._thread.shutdown()
        self._idle.clear()

    def _collect(self, *, max_running: int) -> None:
        """Collect the saves that have ended, and wait until at most ``max_running`` are running."""
        while self._running and (len(self._running) > max_running or self._running[0][0].done()):
            commit, buffers = self._running.pop(0)
            self._error = commit.exception() or self._error
            self._idle.append(buffers)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def _log_failure(commit: Future[CheckpointManifest]) -> None:
    error = commit.exception()
    if error is not None:
        log.error("a checkpoint could not be saved: %s", error)
