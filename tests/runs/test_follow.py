"""Following a run: every event once and in order, whatever happens while one looks."""

from __future__ import annotations

import math
from datetime import datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_harness import FakeClock, make_run

from mtl_cloud.errors import StorageError
from mtl_cloud.runs.events import AttemptEnded, AttemptStarted, Finished, LogLines, Lost, Progress, RoundDone, RunEvent
from mtl_cloud.runs.follow import Cursor, follow
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, Heartbeat, Outcome, ResultRecord, RoundRecord
from mtl_cloud.storage import MemoryStorage


class Writer:
    """Writes a run's record as a supervisor and a trainer do, by the same clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.run = make_run(MemoryStorage("follow"))
        self._segments: dict[int, int] = {}

    @property
    def now(self) -> str:
        return self.clock.now().isoformat()

    def claim(self, number: int) -> AttemptRecord:
        record = AttemptRecord(number=number, started_at=self.now, host="here", pid=1, backend="local")
        self.run.claim(record)
        return record

    def log(self, attempt: int, data: bytes) -> None:
        self._segments[attempt] = self._segments.get(attempt, 0) + 1
        self.run.append_log(attempt, self._segments[attempt], data)

    def beat(self, attempt: int, step: int = 0) -> Heartbeat:
        record = Heartbeat(at=self.now, phase="training", progress={"step": step})
        self.run.write_heartbeat(attempt, record)
        return record

    def exit(self, attempt: int, outcome: Outcome) -> ExitRecord:
        record = ExitRecord(ended_at=self.now, outcome=outcome, exit_code=0, message="", seconds=1.0)
        self.run.write_exit(attempt, record)
        return record

    def round(self, number: int, attempt: int = 1) -> RoundRecord:
        record = RoundRecord(
            round=number,
            attempt=attempt,
            step=number,
            epoch=number,
            ended_at=self.now,
            seconds=1.0,
            validation_s=0.1,
            images=1,
            images_per_s=1.0,
            data_wait=0.0,
            train_losses={},
            val_losses={},
            metrics={},
        )
        self.run.write_round(record)
        return record

    def result(self, attempt: int = 1) -> ResultRecord:
        record = ResultRecord(
            ended_at=self.now, outcome=Outcome.DONE, message="", attempts=attempt, rounds=1, seconds=1.0
        )
        self.run.write_result(record, attempt=attempt)
        return record


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def writer(clock: FakeClock) -> Writer:
    return Writer(clock)


def test_a_run_that_is_over_is_told_whole_and_without_waiting(clock: FakeClock, writer: Writer) -> None:
    attempt = writer.claim(1)
    writer.log(1, b"one\n")
    beat = writer.beat(1, step=3)
    done = writer.round(1)
    end = writer.exit(1, Outcome.DONE)
    result = writer.result()
    assert list(follow(writer.run, clock=clock)) == [
        AttemptStarted(attempt),
        LogLines(1, "one\n"),
        Progress(1, beat),
        AttemptEnded(1, end),
        RoundDone(done),
        Finished(result),
    ]
    assert clock.seconds == 0


def test_a_living_run_is_told_as_it_goes(clock: FakeClock, writer: Writer) -> None:
    clock.at(2, lambda: writer.claim(1))
    clock.at(4, lambda: writer.log(1, b"one\n"))
    clock.at(6, lambda: writer.round(1))
    clock.at(8, lambda: writer.log(1, b"two\n"))
    clock.at(8, lambda: writer.exit(1, Outcome.DONE))
    clock.at(8, writer.result)
    kinds = [type(event) for event in follow(writer.run, clock=clock)]
    assert kinds == [AttemptStarted, LogLines, RoundDone, LogLines, AttemptEnded, Finished]


def test_an_attempt_that_vanished_is_followed_by_the_next(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    writer.log(1, b"old\n")
    clock.at(5, lambda: writer.log(1, b"last\n"))
    clock.at(5, lambda: writer.claim(2))
    clock.at(5, lambda: writer.log(2, b"new\n"))
    clock.at(9, lambda: (writer.exit(2, Outcome.DONE), writer.result(2)))
    told = [event for event in follow(writer.run, clock=clock) if isinstance(event, LogLines | AttemptEnded)]
    assert told[:4] == [LogLines(1, "old\n"), LogLines(1, "last\n"), AttemptEnded(1, None), LogLines(2, "new\n")]


def test_following_goes_on_after_a_position(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    writer.exit(1, Outcome.INTERRUPTED)
    writer.claim(2)
    writer.log(2, b"known\n")
    writer.log(2, b"new\n")
    writer.round(1, attempt=2)
    second = writer.round(2, attempt=2)
    writer.result(2)
    events = list(follow(writer.run, clock=clock, after=Cursor(attempt=2, log_segment=1, round=1)))
    assert [event for event in events if isinstance(event, LogLines | RoundDone)] == [
        LogLines(2, "new\n"),
        RoundDone(second),
    ]
    assert isinstance(events[0], AttemptStarted)
    assert events[0].attempt.number == 2


def test_a_silent_attempt_is_lost(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    beat = writer.beat(1)
    *_, last = follow(writer.run, clock=clock, lost_after_s=60)
    assert last == Lost(1, f"attempt 1 on here has sent no heartbeat since {beat.at}")
    assert 60 < clock.seconds < 70


def test_a_heart_that_beats_is_not_lost(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    for second in range(10, 1000, 10):
        clock.at(second, lambda: writer.beat(1))
    clock.at(1000, writer.result)
    *_, last = follow(writer.run, clock=clock, lost_after_s=60)
    assert isinstance(last, Finished)


def test_an_interrupted_run_without_a_successor_is_lost_unless_the_backend_brings_one(
    clock: FakeClock, writer: Writer
) -> None:
    writer.claim(1)
    writer.exit(1, Outcome.INTERRUPTED)
    *_, last = follow(writer.run, clock=clock)
    assert last == Lost(1, "attempt 1 ended, but the run is not over and has no other attempt")
    clock.at(clock.seconds + 3600, lambda: (writer.claim(2), writer.result(2)))
    *_, last = follow(writer.run, clock=clock, lost_after_s=math.inf)
    assert isinstance(last, Finished)


def test_a_run_lost_long_ago_is_known_to_be_at_the_first_look(writer: Writer) -> None:
    writer.claim(1)
    writer.beat(1)
    now = FakeClock(datetime.fromisoformat("2026-01-02T00:00:00+00:00"))
    *_, last = follow(writer.run, clock=now)
    assert isinstance(last, Lost)
    assert now.seconds == 0


def test_a_run_that_waits_for_its_machine_is_waited_for(clock: FakeClock, writer: Writer) -> None:
    clock.at(7200, lambda: (writer.claim(1), writer.result()))
    assert isinstance(list(follow(writer.run, clock=clock))[-1], Finished)


def test_looks_become_rarer_while_nothing_happens(clock: FakeClock, writer: Writer) -> None:
    clock.at(60, lambda: (writer.claim(1), writer.result()))
    list(follow(writer.run, clock=clock))
    assert clock.pauses[:3] == [0.5, 0.75, 1.125]
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 5.0


def test_a_character_cut_by_the_end_of_a_segment_is_whole(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    for byte in "zwölf\n".encode():
        writer.log(1, bytes([byte]))
    writer.result()
    texts = [event.text for event in follow(writer.run, clock=clock) if isinstance(event, LogLines)]
    assert "".join(texts) == "zwölf\n"


def test_a_storage_that_fails_for_a_minute_is_waited_for(clock: FakeClock, writer: Writer) -> None:
    writer.claim(1)
    writer.result()
    read = writer.run.storage.read

    def fail(key: str) -> bytes:
        if clock.seconds < 60:
            raise StorageError("no route to host")
        return read(key)

    writer.run.storage.read = fail  # type: ignore[method-assign]
    assert isinstance(list(follow(writer.run, clock=clock))[-1], Finished)
    clock.seconds = -1e9
    with pytest.raises(StorageError, match="no route"):
        list(follow(writer.run, clock=clock))


ACTIONS = st.lists(st.tuples(st.sampled_from(["log", "beat", "round", "next"]), st.floats(0, 20)), max_size=30)


def _play(writer: Writer, actions: list[tuple[str, float]]) -> list[RunEvent]:
    """Do the actions one after another, at these distances; what a perfect follower must be told."""
    attempt, number, time = 1, 0, 1.0
    told: list[RunEvent] = []

    def do(action: str, number: int, attempt: int) -> None:
        if action == "log":
            writer.log(attempt, f"{number}\n".encode())
            told.append(LogLines(attempt, f"{number}\n"))
        elif action == "beat":
            writer.beat(attempt)
        elif action == "round":
            told.append(RoundDone(writer.round(len(writer.run.rounds()) + 1, attempt)))
        else:
            writer.claim(attempt)

    writer.clock.at(time, lambda: writer.claim(1))
    for number, (action, pause) in enumerate(actions):
        attempt += action == "next"
        time += pause
        writer.clock.at(time, partial(do, action, number, attempt))
    writer.clock.at(time + 1, lambda: writer.result(attempt))
    return told


@given(ACTIONS)
def test_whatever_happens_logs_and_rounds_are_told_once_and_in_order(actions: list[tuple[str, float]]) -> None:
    writer = Writer(FakeClock())
    expected = _play(writer, actions)
    told = list(follow(writer.run, clock=writer.clock, lost_after_s=math.inf))
    for kind in (LogLines, RoundDone):
        assert [event for event in told if isinstance(event, kind)] == [
            event for event in expected if isinstance(event, kind)
        ]
    assert isinstance(told[-1], Finished)
