"""The ladder from a polite wish to a SIGKILL, in fake time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from run_harness import FakeClock

from mtl_cloud.runs.scratch import Scratch, StopReason
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.graceful_stop import supervise_process
from mtl_cloud.supervise.stop_conditions import DeadlineWatcher, HangWatcher, Stop

SETTINGS = SupervisorOptions(grace_s=60, kill_after_s=5, tick_s=1)


class Puppet:
    """A process that ends with a code, a while after the first thing that moves it."""

    def __init__(self, clock: FakeClock, scratch: Scratch, moved_by: str, code: int, after_s: float = 0) -> None:
        self._clock, self._scratch, self._moved_by, self._code, self._after_s = clock, scratch, moved_by, code, after_s
        self._ends_at = after_s if moved_by == "itself" else math.inf
        self.heard: list[tuple[float, str]] = []

    def _hear(self, word: str) -> None:
        self.heard.append((self._clock.seconds, word))
        if word == self._moved_by:
            self._ends_at = self._clock.seconds + self._after_s
        if word == "kill":
            self._code, self._ends_at = -9, self._clock.seconds

    def wait(self, timeout_s: float | None) -> int | None:
        if self._scratch.stop_reason() and not self.heard:
            self._hear("wish")
        until = self._clock.seconds + (math.inf if timeout_s is None else timeout_s)
        self._clock.sleep(max(0.0, min(until, self._ends_at) - self._clock.seconds))
        return self._code if self._clock.seconds >= self._ends_at else None

    def terminate(self) -> None:
        self._hear("terminate")

    def kill(self) -> None:
        self._hear("kill")


class At100:
    def __init__(self, clock: FakeClock, stop: Stop) -> None:
        self._clock, self._stop = clock, stop

    def poll(self) -> Stop | None:
        return self._stop if self._clock.seconds >= 100 else None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


def test_a_process_that_ends_by_itself_is_not_disturbed(clock: FakeClock, scratch: Scratch) -> None:
    puppet = Puppet(clock, scratch, "itself", 3, after_s=50)
    assert supervise_process(puppet, [], scratch, SETTINGS) == (3, None)
    assert (puppet.heard, clock.seconds) == ([], 50)


CANCEL = Stop(StopReason.CANCEL, "by ann")
SPOT = Stop(StopReason.SPOT, "the instance goes in 20 s", grace_s=20)
REPLACED = Stop(None, "attempt 2 owns the run")


@pytest.mark.parametrize(
    ("stop", "moved_by", "code", "heard"),
    [
        (CANCEL, "wish", 75, [(100, "wish")]),
        (CANCEL, "terminate", 75, [(100, "wish"), (155, "terminate")]),
        (CANCEL, "nothing", -9, [(100, "wish"), (155, "terminate"), (160, "kill")]),
        (SPOT, "nothing", -9, [(100, "wish"), (115, "terminate"), (120, "kill")]),
        (REPLACED, "nothing", -9, [(100, "kill")]),
    ],
)
def test_a_wish_becomes_a_signal_and_a_kill_within_the_grace(
    stop: Stop, moved_by: str, code: int, heard: list[tuple[float, str]], tmp_path: Path
) -> None:
    clock, scratch = FakeClock(), Scratch(tmp_path)
    puppet = Puppet(clock, scratch, moved_by, 75, after_s=3)
    assert supervise_process(puppet, [At100(clock, stop)], scratch, SETTINGS) == (code, stop)
    assert puppet.heard == heard


def test_the_deadline_is_what_earlier_attempts_left_of_it(clock: FakeClock, scratch: Scratch) -> None:
    watcher = DeadlineWatcher(StopReason.DEADLINE, 3600 - 3000, "an hour is over", clock)
    puppet = Puppet(clock, scratch, "wish", 75)
    assert supervise_process(puppet, [watcher], scratch, SETTINGS) == (75, Stop(StopReason.DEADLINE, "an hour is over"))
    assert clock.seconds == 600


def test_the_trainer_is_told_why(clock: FakeClock, scratch: Scratch) -> None:
    supervise_process(Puppet(clock, scratch, "wish", 75), [At100(clock, SPOT)], scratch, SETTINGS)
    assert scratch.stop_reason() is StopReason.SPOT


def test_only_a_trainer_without_a_sign_of_life_is_taken_to_hang(clock: FakeClock, scratch: Scratch) -> None:
    watcher = HangWatcher(scratch, hang_s=60, clock=clock)
    for minute in range(5):
        scratch.write_progress("training", step=minute)
        assert watcher.poll() is None
        clock.sleep(59)
        assert watcher.poll() is None
    clock.sleep(10)
    stop = watcher.poll()
    assert stop is not None
    assert stop.reason is StopReason.HANG


def test_a_trainer_that_hangs_is_killed_at_once(clock: FakeClock, scratch: Scratch) -> None:
    puppet = Puppet(clock, scratch, "kill", -9)
    hang = Stop(StopReason.HANG, "no sign of life")
    assert supervise_process(puppet, [At100(clock, hang)], scratch, SETTINGS) == (-9, hang)
    assert puppet.heard == [(clock.seconds, "kill")]


def test_a_request_that_cannot_be_written_becomes_a_sigterm(clock: FakeClock, tmp_path: Path) -> None:
    """As on a full disk; here the scratch folder is gone."""
    scratch = Scratch(tmp_path / "gone")
    puppet = Puppet(clock, scratch, "terminate", 75, after_s=3)
    assert supervise_process(puppet, [At100(clock, CANCEL)], scratch, SETTINGS) == (75, CANCEL)
    assert (puppet.heard, clock.seconds) == ([(100, "terminate")], 103)
