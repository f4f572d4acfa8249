"""Follow a run: poll its record and yield events.

It works the same for every backend and from any machine, during the run and after it.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from mtl_cloud.clock import Clock
from mtl_cloud.runs.attempts import CLOCK_SKEW_S, LOST_AFTER_S, age_s
from mtl_cloud.runs.events import (
    AttemptEnded,
    AttemptStarted,
    Finished,
    LogLines,
    Lost,
    MachineWatch,
    Progress,
    RoundDone,
    RunEvent,
)
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.storage.retrying import RetryingStorage

__all__ = [
    "Cursor",
    "follow",
]

_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Cursor:
    """The position of a reader in a run: rounds, and log segments of ``attempt``, up to these numbers are known."""

    attempt: int = 1
    log_segment: int = 0
    round: int = 0


def follow(
    run: RunRecord,
    *,
    clock: Clock,
    after: Cursor = Cursor(),
    lost_after_s: float = LOST_AFTER_S,
    machine: MachineWatch | None = None,
) -> Iterator[RunEvent]:
    """Yield every event of a run once; events of one attempt are in order.

    1. An attempt's log pieces come between its ``AttemptStarted`` and ``AttemptEnded``, complete.
    2. The last event is ``Finished``, or ``Lost`` when the newest attempt has stopped reporting, or ended without a
       successor, for ``lost_after_s`` (``math.inf``: never, for a backend that starts the next attempt itself). A run
       without any attempt is waited for.
    3. Polls every half second while events arrive, and at longer intervals, up to five seconds, while none do.
    4. Raises ``StorageError`` when the storage has failed for two minutes.
    5. With ``machine``, the watch of a backend that starts machines itself, its news are yielded too. Such a run is
       never ``Lost``: the watch raises ``LaunchError`` when no machine will come any more.
    """
    storage = RetryingStorage(run.storage, patience_s=_PATIENCE_S, clock=clock)
    follower = _Follower(RunRecord(storage, run.run_id), clock, after, lost_after_s if machine is None else math.inf)
    pause_s = _FIRST_PAUSE_S
    while True:
        is_quiet = True
        for event in chain(machine.look() if machine else (), follower.look()):
            yield event
            is_quiet = False
            if isinstance(event, Finished | Lost):
                return
        clock.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5) if is_quiet else _FIRST_PAUSE_S


def _decoder() -> codecs.IncrementalDecoder:
    """A character may be cut by the end of a segment."""
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass
class _Seen:
    """The part of one attempt that was reported already."""

    number: int
    log_segment: int = 0
    started: bool = False
    ended: bool = False
    beat_at: str | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)


class _Follower:
    """The state of following one run."""

    def __init__(self, run: RunRecord, clock: Clock, after: Cursor, lost_after_s: float) -> None:
        self._run = run
        self._clock = clock
        self._lost_after_s = lost_after_s
        self._round = after.round
        self._attempt = _Seen(after.attempt, after.log_segment)
        self._sign_at = clock.monotonic()

    def look(self) -> Iterator[RunEvent]:
        """Yield new events. Records that end something are read before the records that must precede them."""
        result = self._run.result()
        attempts = self._run.attempts()
        for attempt in attempts[self._attempt.number - 1 :]:
            yield from self._look_at(attempt)
        for record in self._run.rounds(after=self._round):
            self._round = record.round
            yield RoundDone(record)
        if result is not None:
            yield Finished(result)
        elif attempts:
            yield from self._look_for_silence(attempts[-1])

    def _look_at(self, attempt: AttemptRecord) -> Iterator[RunEvent]:
        if attempt.number > self._attempt.number:
            yield from self._leave()
            self._attempt = _Seen(attempt.number)
        seen = self._attempt
        if not seen.started:
            seen.started = self._note_sign()
            yield AttemptStarted(attempt)
        end = self._run.exit(seen.number)
        yield from self._look_at_log(seen)
        yield from self._look_at_heartbeat(seen)
        if end is not None and not seen.ended:
            seen.ended = self._note_sign()
            yield AttemptEnded(seen.number, end)

    def _leave(self) -> Iterator[RunEvent]:
        """A later attempt exists, so the current one has ended, with or without an exit record."""
        if self._attempt.started and not self._attempt.ended:
            yield AttemptEnded(self._attempt.number, None)

    def _look_at_log(self, seen: _Seen) -> Iterator[RunEvent]:
        for segment in self._run.log_segments(seen.number, after=seen.log_segment):
            data = self._run.log_segment(seen.number, segment)
            seen.log_segment = segment
            yield LogLines(seen.number, seen.decoder.decode(data))

    def _look_at_heartbeat(self, seen: _Seen) -> Iterator[RunEvent]:
        beat = self._run.heartbeat(seen.number)
        if beat is not None and beat.at != seen.beat_at:
            seen.beat_at = beat.at
            self._note_sign()
            yield Progress(seen.number, beat)

    def _look_for_silence(self, newest: AttemptRecord) -> Iterator[RunEvent]:
        by_clock_s = age_s(self._sign(newest), self._clock.now()) - CLOCK_SKEW_S  # before any silence was watched
        quiet_s = max(self._clock.monotonic() - self._sign_at, by_clock_s)
        if quiet_s <= self._lost_after_s:
            return
        if self._attempt.ended:
            message = f"attempt {newest.number} ended, but the run is not over and has no other attempt"
            yield Lost(newest.number, message)
        else:
            yield Lost(
                newest.number,
                f"attempt {newest.number} on {newest.host} has sent no heartbeat since {self._sign(newest)}",
            )

    def _sign(self, attempt: AttemptRecord) -> str:
        return self._attempt.beat_at or attempt.started_at

    def _note_sign(self) -> bool:
        self._sign_at = self._clock.monotonic()
        return True
