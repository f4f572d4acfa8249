"""One account of attempts: seconds, dollars and liveness are the same wherever they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ec2_harness import World, ec2_plan
from hypothesis import given
from hypothesis import strategies as st
from run_harness import FAST, START, FakeClock, at, make_run

from mtl_cloud import cli
from mtl_cloud.catalog import Price
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.local import LocalLauncher
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.dataclass_json import to_json
from mtl_cloud.runs.events import Lost
from mtl_cloud.runs.follow import follow
from mtl_cloud.runs.lifecycle import finish_run
from mtl_cloud.runs.plan_facts import Offer
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, BootRecord, ExitRecord, Heartbeat, Outcome
from mtl_cloud.runs.summary import summarize
from mtl_cloud.storage import FolderStorage, MemoryStorage, Storage
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.stop_conditions import DeadlineWatcher

USD_PER_HOUR = 36.0
"""A cent a second."""


def claim(run: RunRecord, number: int, start: float, *, host: str = "elsewhere") -> None:
    run.claim(
        AttemptRecord(
            number=number, started_at=at(start), host=host, pid=1, backend="ec2", usd_per_hour=run.plan().usd_per_hour
        )
    )


def beat(run: RunRecord, number: int, when: float) -> None:
    run.write_heartbeat(number, Heartbeat(at=at(when), phase="training"))


def end(run: RunRecord, number: int, when: float, counted: float, outcome: Outcome = Outcome.INTERRUPTED) -> None:
    run.write_exit(
        number, ExitRecord(ended_at=at(when), outcome=outcome.value, exit_code=75, message="", seconds=counted)
    )


def three_kinds_of_attempt(storage: Storage) -> RunRecord:
    """One vanished, one whose own clock counted 90 of 100 seconds, and one that is alive."""
    run = make_run(storage, backend="ec2", usd_per_hour=USD_PER_HOUR, budget_usd=10.0, deadline_s=1000.0)
    claim(run, 1, 0)
    beat(run, 1, 50)
    claim(run, 2, 200)
    beat(run, 2, 290)
    end(run, 2, 300, counted=90)
    claim(run, 3, 400)
    beat(run, 3, 440)
    return run


def limits(run: RunRecord, number: int, now: float, folder: Path) -> dict[str, float]:
    """Seconds that the supervisor of attempt ``number`` would still grant, by the reason to stop."""
    clock = FakeClock(START)
    clock.seconds = now
    context = SupervisorContext(scratch=folder, environ={}, clock=clock)
    watchers = list(Attempt(run, run.plan(), number, context)._limits())
    assert all(isinstance(watcher, DeadlineWatcher) for watcher in watchers)
    left = {}
    for watcher in watchers:
        clock.seconds = now
        while (stop := watcher.poll()) is None:
            clock.seconds += 0.5
        left[str(stop.reason)] = clock.seconds - now
    return left


@pytest.fixture
def told_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str, RunRecord], Any]:
    """The JSON of a command on the run's storage, 460 s after the start."""

    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return (START + timedelta(seconds=460)).astimezone(tz)

    def told(command: str, run: RunRecord) -> Any:
        monkeypatch.setattr(f"mtl_cloud.cli.commands.{command}.datetime", Now)
        arguments = [run.run_id] if command != "runs" else []
        assert cli.main([command, *arguments, "--storage", run.storage.url, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return told


def test_runs_cost_and_the_budget_agree_on_one_record(tmp_path: Path, told_by: Callable[[str, RunRecord], Any]) -> None:
    run = three_kinds_of_attempt(FolderStorage(tmp_path / "storage"))
    seconds = 50 + 100 + 60
    assert told_by("cost", run)["usd"] == pytest.approx(seconds / 100)
    (listed,) = told_by("runs", run)["runs"]
    assert (listed["seconds"], listed["usd"]) == (seconds, pytest.approx(seconds / 100))
    assert limits(run, 3, 460, tmp_path) == {"deadline": 1000 - seconds, "budget": pytest.approx(1000 - seconds)}


def test_a_finished_run_keeps_that_account(tmp_path: Path) -> None:
    run = three_kinds_of_attempt(MemoryStorage("finished"))
    end(run, 3, 460, counted=60, outcome=Outcome.DONE)
    finish_run(run, 3, Outcome.DONE, "all rounds are done", now=START)
    result = run.result()
    assert result is not None
    assert (result.seconds, result.usd) == (210, 2.1)
    assert bill_of(run).seconds == 210
    assert bill_of(run).usd == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("silence", "is_lost"), [(0, False), (-120, False), (120, False), (390, False), (391, True), (4000, True)]
)
def test_one_rule_for_clocks_that_differ(silence: float, tmp_path: Path, *, is_lost: bool) -> None:
    """A reader whose clock is minutes ahead or behind calls no attempt lost whose heartbeats are fresh."""
    run = make_run(FolderStorage(tmp_path / "storage"))
    claim(run, 1, 0)
    beat(run, 1, 100)
    clock = FakeClock(START)
    clock.seconds = 100 + silence
    assert summarize(run, clock.now()).state == ("lost" if is_lost else "running")
    launcher = LocalLauncher(environ={"HOME": str(tmp_path)}, settings=FAST, clock=clock)
    state = launcher.describe(RunHandle.of(run.plan()))
    assert state is (BackendState.ENDED if is_lost else BackendState.RUNNING)
    soon = clock.seconds + 0.25
    clock.at(soon, lambda: end(run, 1, 200, 200, Outcome.DONE))
    clock.at(soon, lambda: finish_run(run, 1, Outcome.DONE, "", now=START))
    *_, last = follow(run, clock=clock)
    assert isinstance(last, Lost) is is_lost


# --- any history -----------------------------------------------------------------------------------------------------

PRICES = {("spot", "a"): 10.0, ("on-demand", "a"): 30.0, ("spot", "b"): 12.0}
OFFERS = [
    Offer(
        machine="p4d.24xlarge",
        zone=zone,
        market="spot" if market == "spot" else "on_demand",
        price=Price(price, "us-east-1", "2026-01-01", "a table"),
        worst_usd_per_hour=30.0,
    )
    for (market, zone), price in PRICES.items()
]


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Machines one after the other; each boots, holds some attempts (or none), and each attempt ends somehow."""
    now, history = 0, []
    for machine in range(draw(st.integers(1, 4))):
        market, zone = draw(st.sampled_from(list(PRICES)))
        boot = now if draw(st.booleans()) else None
        now += draw(st.integers(0, 300))
        attempts = []
        for _ in range(draw(st.integers(0 if boot is not None else 1, 3))):
            start, lasted = now, draw(st.integers(0, 5000))
            now += lasted + draw(st.integers(0, 60))
            how = draw(st.sampled_from(["ended", "vanished", "silent"]))
            counted = max(0, lasted + draw(st.integers(-5, 5)))
            attempts.append({"start": start, "lasted": lasted, "how": how, "counted": counted})
        history.append({"name": f"i-{machine}", "boot": boot, "market": market, "zone": zone, "attempts": attempts})
        now += draw(st.integers(0, 600))
    return history


def write(history: list[dict[str, Any]]) -> RunRecord:
    plan = ec2_plan(purchase="spot_then_on_demand")
    facts = {**plan.facts, "offers": to_json(OFFERS)}
    run = World().make_run(replace(plan, facts=facts, usd_per_hour=30.0, budget_usd=1e6))
    number = 0
    for machine in history:
        if machine["boot"] is not None:
            last = machine["attempts"][0]["start"] if machine["attempts"] else machine["boot"] + 40
            record = BootRecord(
                instance=machine["name"],
                instance_type="p4d.24xlarge",
                zone=machine["zone"],
                market=machine["market"],
                phase="running",
                message="",
                started_at=at(machine["boot"]),
                at=at(last),
            )
            run.storage.write(run.paths.boot(machine["name"]), record.encode())
        for attempt in machine["attempts"]:
            number += 1
            claim(run, number, attempt["start"], host=machine["name"])
            if attempt["how"] != "silent":
                beat(run, number, attempt["start"] + attempt["lasted"])
            if attempt["how"] == "ended":
                end(run, number, attempt["start"] + attempt["lasted"], attempt["counted"])
    return run


def by_hand(history: list[dict[str, Any]], now: float) -> tuple[float, float]:
    """Seconds and dollars, added up machine by machine. Only the very last attempt may be alive at ``now``."""
    seconds = usd = 0.0
    newest: Any = next((attempt for machine in reversed(history) for attempt in reversed(machine["attempts"])), None)
    for machine in history:
        price = PRICES[machine["market"], machine["zone"]] if machine["boot"] is not None else 30.0
        own = 0.0
        if machine["boot"] is not None:
            first = machine["attempts"][0]["start"] if machine["attempts"] else machine["boot"] + 40
            own += first - machine["boot"]
        for attempt in machine["attempts"]:
            sign = attempt["start"] + (attempt["lasted"] if attempt["how"] != "silent" else 0)
            if attempt["how"] == "ended":
                own += max(attempt["lasted"], attempt["counted"])
            elif attempt is newest and now - sign <= 390:
                own += max(now, sign) - attempt["start"]
            else:
                own += sign - attempt["start"]
        seconds += own
        usd += own * price / 3600
    return seconds, usd


@given(histories(), st.integers(0, 1000))
def test_every_sum_is_that_of_the_history(history: list[dict[str, Any]], later: int) -> None:
    run = write(history)
    last = max([0, *(a["start"] + a["lasted"] for machine in history for a in machine["attempts"])])
    now = START + timedelta(seconds=last + later)
    seconds, usd = by_hand(history, last + later)
    bill, summary = bill_of(run, now=now), summarize(run, now)
    assert bill.seconds == pytest.approx(seconds)
    assert summary.seconds == bill.seconds
    assert bill.usd == pytest.approx(usd)
    assert summary.usd == bill.usd
    assert bill.budgeted_usd(30.0) == pytest.approx(usd)


@given(histories(), st.floats(0.01, 100))
def test_a_budget_never_counts_less_than_the_bill(history: list[dict[str, Any]], usd_per_hour: float) -> None:
    """Also where a price is unknown: those of spot in zone b are not in this plan."""
    run = write(history)
    plan = run.plan()
    facts = {**plan.facts, "offers": to_json([offer for offer in OFFERS if offer.zone != "b"])}
    run.storage.write(run.paths.plan, replace(plan, facts=facts).encode())
    bill = bill_of(run)
    known = sum(charge.usd or 0.0 for charge in bill.charges)
    assert bill.budgeted_usd(usd_per_hour) >= known - 1e-9
    unknown = [charge for charge in bill.charges if charge.usd_per_hour is None]
    assert (bill.usd is None) is bool(unknown)
    assert bill.budgeted_usd(usd_per_hour) == pytest.approx(
        known + sum(charge.seconds * usd_per_hour / 3600 for charge in unknown)
    )
