"""The deadline and the budget of a run: what is left of each when an attempt starts, and what it says at the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from run_harness import FakeClock, make_run

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.stop_conditions import DeadlineWatcher, Stop, Watcher

START = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = Stop(StopReason.DEADLINE, "the run's 2.5 hours are used up")
BUDGET = Stop(StopReason.BUDGET, "the budget of $90.00 is used up")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


def run_of(**plan: Any) -> RunRecord:
    """Its first attempt lasted 1,000 s on a machine without a price of its own."""
    run = make_run(MemoryStorage("limits"), **{"backend": "ec2", "usd_per_hour": 36.0, **plan})
    run.claim(AttemptRecord(number=1, started_at=START.isoformat(), host="i-1", pid=1, backend="sagemaker"))
    ended = (START + timedelta(seconds=1000)).isoformat()
    run.write_exit(1, ExitRecord(ended_at=ended, outcome="interrupted", exit_code=75, message="", seconds=1000))
    return run


def watchers(run: RunRecord, clock: FakeClock, folder: Path) -> list[Watcher]:
    context = SupervisorContext(scratch=folder, environ={}, clock=clock)
    return list(Attempt(run, run.plan(), 2, context)._limits())


def fires_at(watcher: Watcher, clock: FakeClock) -> tuple[float, Stop]:
    """The second, of whole ones, at which it has a reason to stop."""
    clock.seconds = 0
    while (stop := watcher.poll()) is None:
        assert clock.seconds < 100_000
        clock.seconds += 1
    return clock.seconds, stop


def test_both_limits_count_what_earlier_attempts_have_used(clock: FakeClock, tmp_path: Path) -> None:
    """36 dollars an hour are a cent a second: of 90 dollars and 9,000 s, 1,000 s are used."""
    deadline, budget = watchers(run_of(deadline_s=9000.0, budget_usd=90.0), clock, tmp_path)
    assert fires_at(deadline, clock) == (8000, DEADLINE)
    assert fires_at(budget, clock) == (8000, BUDGET)


def test_a_cheaper_machine_lasts_longer(clock: FakeClock, tmp_path: Path) -> None:
    """At 18 dollars an hour, for the first attempt too, whose price is unknown."""
    _, budget = watchers(run_of(deadline_s=9000.0, budget_usd=90.0, usd_per_hour=18.0), clock, tmp_path)
    assert fires_at(budget, clock) == (18_000 - 1000, BUDGET)


@pytest.mark.parametrize(
    ("plan", "reasons"),
    [
        ({}, []),
        ({"deadline_s": 9000.0}, ["deadline"]),
        ({"budget_usd": 90.0}, ["budget"]),
        ({"budget_usd": 90.0, "usd_per_hour": None}, []),  # nothing can be counted, and the plan has warned of it
        ({"budget_usd": 90.0, "usd_per_hour": 0.0}, []),  # it costs nothing
        ({"budget_usd": None, "usd_per_hour": 36.0}, []),
    ],
)
def test_a_limit_that_the_plan_does_not_have_is_not_watched(
    plan: dict[str, Any], reasons: list[str], clock: FakeClock, tmp_path: Path
) -> None:
    found = [fires_at(watcher, clock)[1].reason for watcher in watchers(run_of(**plan), clock, tmp_path)]
    assert found == reasons


@pytest.mark.parametrize("plan", [{"deadline_s": 1000.0}, {"budget_usd": 10.0}, {"budget_usd": 5.0}])
def test_a_limit_that_is_used_up_stops_an_attempt_before_its_trainer_starts(
    plan: dict[str, Any], clock: FakeClock, tmp_path: Path
) -> None:
    (watcher,) = watchers(run_of(**plan), clock, tmp_path)
    assert fires_at(watcher, clock)[0] == 0


def test_a_limit_counts_from_its_watchers_start_to_the_very_second(clock: FakeClock) -> None:
    clock.seconds = 500
    watcher = DeadlineWatcher(StopReason.DEADLINE, 60, "a minute is over", clock)
    for seconds, expected in ((500, None), (559.9, None), (560, "a minute is over"), (9999, "a minute is over")):
        clock.seconds = seconds
        stop = watcher.poll()
        assert (stop and stop.message) == expected
