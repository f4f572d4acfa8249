"""Saving behind the training loop's back.

The loop waits for one copy of its state into host memory that is kept from save to save. A thread does the rest.

**Memory.** One copy of the state while no save has to begin before another one has ended, two from then on, never
more; and what ``Checkpointer.commit`` needs for the parts that are on their way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mtl_cloud.runs.schema import CheckpointManifest
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer
from mtl_cloud.train.checkpoint.snapshot import HostBuffers

__all__ = ["Saver"]

log = logging.getLogger(__name__)

_COPIES = 2


class Saver:
    """Commits the states of one attempt in the order in which they are given.

    A save that fails commits nothing. Its error is logged at once, and raised by the next ``save``, after that one's
    state is on its way, or by ``drain``: what can still be saved is saved first.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: list[tuple[Future[CheckpointManifest], HostBuffers]] = []
        self._idle: list[HostBuffers] = []
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Is a save under way? One that only the clock asks for can then be left out."""
        return any(not future.done() for future, _ in self._running)

    def save(self, state: Mapping[str, Any], *, step: int, round: int, reason: str) -> None:  # noqa: A002 - the field's name in the manifest
        """Copy ``state``, and have it committed; waits while two others are under way.

        Raises
        ------
        RunTakenOverError, StorageError
            Of an earlier save.
        """
        self._settle(leave=_COPIES - 1)
        buffers = self._idle.pop() if self._idle else HostBuffers()
        snapshot = self._checkpointer.take(state, buffers)
        commit = self._thread.submit(self._checkpointer.commit, snapshot, step=step, round=round, reason=reason)
        commit.add_done_callback(_log_failure)
        self._running.append((commit, buffers))
        self._raise_error()

    def drain(self) -> None:
        """Wait until all is committed. Raises as ``save`` does, for any save that has failed."""
        self._settle(leave=0)
        self._raise_error()

    def close(self) -> None:
        """Wait until nothing is under way, without a word on failures, and give the memory back."""
        self._settle(leave=0)
        self._thread.shutdown()
        self._idle.clear()

    def _settle(self, *, leave: int) -> None:
        """Collect the saves that have ended, waiting until at most ``leave`` are under way."""
        while self._running and (len(self._running) > leave or self._running[0][0].done()):
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
