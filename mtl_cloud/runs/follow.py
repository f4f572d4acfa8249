"""Following a run: its record, read again and again, as a stream of events.

It works the same for every backend and from any machine, while the run lasts and long after it.
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
from mtl_cloud.storage.retrying import PatientStorage

__all__ = [
    "Cursor",
    "follow",
]

_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Cursor:
    """How much of a run is known already: rounds and log segments (of that attempt) up to these numbers."""

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
    """Every event of a run, each once, those of one attempt in their order.

    1. An attempt's log pieces come between its ``AttemptStarted`` and ``AttemptEnded``, and all of them do.
    2. Ends with ``Finished`` after everything else, or with ``Lost`` when the newest attempt has given no sign of
       life, or ended without a successor, for ``lost_after_s`` (``math.inf``: never, for a backend that itself
       brings the next attempt). A run that no attempt has begun is waited for.
    3. Sleeps between looks: half a second while something happens, up to five while nothing does.
    4. Raises ``StorageError`` when the storage has failed for two minutes.
    5. With ``machine``, the watch of a backend that brings machines by itself, its news come between the others. Such
       a run is never ``Lost``: the watch's ``LaunchError`` is raised when no machine will come any more.
    """
    storage = PatientStorage(run.storage, patience_s=_PATIENCE_S, clock=clock)
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
    """What was seen of one attempt."""

    number: int
    log_segment: int = 0
    started: bool = False
    ended: bool = False
    beat_at: str | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)


class _Follower:
    """What was seen of the run."""

    def __init__(self, run: RunRecord, clock: Clock, after: Cursor, lost_after_s: float) -> None:
        self._run = run
        self._clock = clock
        self._lost_after_s = lost_after_s
        self._round = after.round
        self._life = _Seen(after.attempt, after.log_segment)
        self._sign_at = clock.monotonic()

    def look(self) -> Iterator[RunEvent]:
        """What is new. What tells of an end is read before what must come ahead of it."""
        result = self._run.result()
        attempts = self._run.attempts()
        for attempt in attempts[self._life.number - 1 :]:
            yield from self._look_at(attempt)
        for record in self._run.rounds(after=self._round):
            self._round = record.round
            yield RoundDone(record)
        if result is not None:
            yield Finished(result)
        elif attempts:
            yield from self._look_for_life(attempts[-1])

    def _look_at(self, attempt: AttemptRecord) -> Iterator[RunEvent]:
        if attempt.number > self._life.number:
            yield from self._leave()
            self._life = _Seen(attempt.number)
        life = self._life
        if not life.started:
            life.started = self._note_sign()
            yield AttemptStarted(attempt)
        end = self._run.exit(life.number)
        yield from self._look_at_log(life)
        yield from self._look_at_heart(life)
        if end is not None and not life.ended:
            life.ended = self._note_sign()
            yield AttemptEnded(life.number, end)

    def _leave(self) -> Iterator[RunEvent]:
        """A later attempt is there: the present one has ended, with or without a word."""
        if self._life.started and not self._life.ended:
            yield AttemptEnded(self._life.number, None)

    def _look_at_log(self, life: _Seen) -> Iterator[RunEvent]:
        for segment in self._run.log_segments(life.number, after=life.log_segment):
            data = self._run.log_segment(life.number, segment)
            life.log_segment = segment
            yield LogLines(life.number, life.decoder.decode(data))

    def _look_at_heart(self, life: _Seen) -> Iterator[RunEvent]:
        beat = self._run.heartbeat(life.number)
        if beat is not None and beat.at != life.beat_at:
            life.beat_at = beat.at
            self._note_sign()
            yield Progress(life.number, beat)

    def _look_for_life(self, newest: AttemptRecord) -> Iterator[RunEvent]:
        by_clock_s = age_s(self._sign(newest), self._clock.now()) - CLOCK_SKEW_S  # before any silence was watched
        quiet_s = max(self._clock.monotonic() - self._sign_at, by_clock_s)
        if quiet_s <= self._lost_after_s:
            return
        if self._life.ended:
            yield Lost(newest.number, f"attempt {newest.number} ended, the run did not, and no other attempt goes on")
        else:
            yield Lost(
                newest.number,
                f"attempt {newest.number} on {newest.host} has given no sign of life since {self._sign(newest)}",
            )

    def _sign(self, attempt: AttemptRecord) -> str:
        return self._life.beat_at or attempt.started_at

    def _note_sign(self) -> bool:
        self._sign_at = self._clock.monotonic()
        return True
