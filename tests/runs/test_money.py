"""Charges, compared whole: whose they are, at what price, and what counts against a budget."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from ec2_harness import World, ec2_plan
from run_harness import START, at, make_run

from mtl_cloud.catalog import Price
from mtl_cloud.runs.attempts import AttemptState, attempt_outcomes, bill_of, bill_of_attempts, read_attempts
from mtl_cloud.runs.charges import Bill, Charge
from mtl_cloud.runs.dataclass_json import to_json
from mtl_cloud.runs.plan_facts import Market, Offer
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import (
    AttemptRecord,
    BootRecord,
    CheckpointManifest,
    ExitRecord,
    Heartbeat,
    Outcome,
)
from mtl_cloud.storage import MemoryStorage

MACHINE = "p4d.24xlarge"
LISTED = 21.957642
"""On demand, by the shipped table."""


def claim(run: RunRecord, number: int, start: float, **fields: Any) -> AttemptRecord:
    record = AttemptRecord(
        **{"number": number, "started_at": at(start), "host": "h", "pid": 1, "backend": "ec2", **fields}
    )
    run.claim(record)
    return record


def end(run: RunRecord, number: int, when: float, *, counted: float = 0.0, **fields: Any) -> None:
    record = ExitRecord(ended_at=at(when), outcome="interrupted", exit_code=75, message="", seconds=counted)
    run.write_exit(number, replace(record, **fields))


def boot(run: RunRecord, instance: str, market: str, start: float, until: float, *, zone: str = "us-east-1a") -> None:
    record = BootRecord(
        instance=instance, instance_type=MACHINE, zone=zone, market=market, phase="running", message="",
        started_at=at(start), at=at(until),
    )  # fmt: skip
    run.storage.write(run.paths.boot(instance), record.encode())


def offer(market: Market, zone: str | None, usd_per_hour: float | None) -> Offer:
    price = None if usd_per_hour is None else Price(usd_per_hour, "us-east-1", "2026-01-01", "a table")
    return Offer(MACHINE, zone, market, price, worst_usd_per_hour=None)


def on_ec2(*offers: Offer) -> RunRecord:
    plan = ec2_plan(purchase="spot_then_on_demand")
    return World().make_run(replace(plan, facts={**plan.facts, "offers": to_json(offers)}))


# --- charges ---


def test_a_machine_that_is_not_rented_is_charged_by_the_plan_only_where_it_has_a_price() -> None:
    run = make_run(MemoryStorage("own"), usd_per_hour=None)
    claim(run, 1, 0, host="laptop", backend="local")
    end(run, 1, 60)
    assert bill_of(run).charges == (Charge(1, "laptop", None, None, None, 60, None, None, "local"),)
    assert (bill_of(run).usd, bill_of(run).saved_usd, bill_of(run).budgeted_usd(36.0)) == (None, None, 0)


def test_an_attempt_is_charged_at_the_price_of_the_plan_under_which_it_ran() -> None:
    """The run was moved from a machine of 10 dollars to one of 20; an older attempt has no price of its own."""
    run = make_run(MemoryStorage("moved"), backend="ec2", usd_per_hour=20.0)
    for number, price, backend in ((1, 10.0, "sagemaker"), (2, None, "ec2"), (3, None, "sagemaker"), (4, 5.0, "ec2")):
        claim(run, number, 0, host=f"i-{number}", backend=backend, usd_per_hour=price)
        end(run, number, 3600)
    assert bill_of(run).charges == (
        Charge(1, "i-1", None, None, None, 3600, 10.0, 10.0, "sagemaker"),
        Charge(2, "i-2", None, None, None, 3600, 20.0, 20.0, "ec2"),
        Charge(3, "i-3", None, None, None, 3600, None, None, "sagemaker"),
        Charge(4, "i-4", None, None, None, 3600, 5.0, 5.0, "ec2"),
    )


def test_a_machine_is_charged_at_its_zones_offer_its_market_and_type_told() -> None:
    run = on_ec2(offer("spot", "us-east-1a", 10.0), offer("spot", None, 12.0), offer("on_demand", "us-east-1b", 30.0))
    boot(run, "i-1", "spot", 0, 5)
    claim(run, 1, 5, host="i-1")
    end(run, 1, 65)
    boot(run, "i-2", "spot", 100, 105, zone="us-east-1b")
    claim(run, 2, 105, host="i-2")
    end(run, 2, 165)
    boot(run, "i-3", "on-demand", 200, 240, zone="us-east-1b")
    assert bill_of(run).charges == (
        Charge(1, "i-1", MACHINE, "us-east-1a", "spot", 65, 10.0, LISTED, "ec2"),
        Charge(2, "i-2", MACHINE, "us-east-1b", "spot", 65, 12.0, 30.0, "ec2"),
        Charge(None, "i-3", MACHINE, "us-east-1b", "on_demand", 40, 30.0, 30.0, "ec2"),
    )


def test_the_offer_of_a_zone_goes_before_a_dearer_one_for_all_zones() -> None:
    run = on_ec2(offer("spot", None, 99.0), offer("spot", "us-east-1a", 10.0), offer("spot", "us-east-1c", 8.0))
    boot(run, "i-1", "spot", 0, 60)
    (charge,) = bill_of(run).charges
    assert charge.usd_per_hour == 10.0


def test_a_machine_whose_price_is_in_no_offer_and_no_table_has_none() -> None:
    run = on_ec2(offer("spot", "us-east-1a", None))
    plan = run.plan()
    run.storage.write(run.paths.plan, replace(plan, facts={**plan.facts, "candidates": []}).encode())
    boot(run, "i-1", "spot", 0, 60)
    boot(run, "i-2", "on-demand", 0, 60)
    assert [(charge.usd_per_hour, charge.on_demand_usd_per_hour) for charge in bill_of(run).charges] == [
        (None, None),
        (None, None),
    ]


def test_a_boot_after_the_claim_by_the_machines_own_clock_takes_nothing_off() -> None:
    run = on_ec2(offer("spot", None, 36.0))
    boot(run, "i-1", "spot", 10, 20)
    claim(run, 1, 5, host="i-1")
    end(run, 1, 65)
    assert bill_of(run).seconds == 60


# --- charges that a backend reports ---

REPORTED = Charge(1, "job-1", "ml.c5.9xlarge", None, "spot", 100, 1.5, 2.0, "sagemaker")


def moved_run() -> RunRecord:
    """Attempts on SageMaker, on EC2, and on SageMaker again."""
    run = make_run(MemoryStorage("reported"), backend="sagemaker", usd_per_hour=36.0)
    for number, backend in enumerate(("sagemaker", "ec2", "sagemaker"), 1):
        claim(run, number, 0, host=f"h-{number}", backend=backend, usd_per_hour=36.0)
        end(run, number, 60)
    return run


def test_they_replace_those_of_its_attempts_and_no_others() -> None:
    of_ec2 = Charge(2, "h-2", None, None, None, 60, 36.0, 36.0, "ec2")
    assert bill_of(moved_run(), {"sagemaker": [REPORTED]}).charges == (REPORTED, of_ec2)


@pytest.mark.parametrize("billed", [None, {}, {"sagemaker": []}])
def test_without_any_all_attempts_are_charged_from_the_record(billed: dict[str, list[Charge]] | None) -> None:
    assert [charge.attempt for charge in bill_of(moved_run(), billed).charges] == [1, 2, 3]


# --- seconds ---


def test_an_attempt_without_a_time_stamp_of_its_end_lasted_as_long_as_it_counted() -> None:
    run = make_run(MemoryStorage("stamps"))
    claim(run, 1, 0)
    end(run, 1, 0, counted=0.5, ended_at="")
    claim(run, 2, 0)
    end(run, 2, 100, counted=90)
    claim(run, 3, 0)
    end(run, 3, 100, counted=110)
    assert [attempt.seconds() for attempt in read_attempts(run)] == [0.5, 100, 110]


def silent(heartbeat: float | None) -> AttemptState:
    record = AttemptRecord(number=1, started_at=at(0), host="h", pid=1, backend="ec2")
    return AttemptState(record, None if heartbeat is None else Heartbeat(at=at(heartbeat), phase="training"), None)


@pytest.mark.parametrize(
    ("heartbeat", "now", "lost", "seconds"),
    [
        (None, 390, False, 390),
        (None, 390.5, True, 0),
        (100, 490, False, 490),
        (100, 490.5, True, 100),
        (100, 50, False, 100),  # the reader's clock is behind
    ],
)
def test_an_attempt_is_lost_six_and_a_half_minutes_after_its_last_heartbeat(
    heartbeat: float | None, now: float, seconds: float, *, lost: bool
) -> None:
    attempt, time = silent(heartbeat), START + timedelta(seconds=now)
    assert (attempt.is_lost(time), attempt.is_alive(time)) == (lost, not lost)
    assert attempt.seconds(None if lost else time) == seconds


def test_an_attempt_that_ended_is_neither_lost_nor_alive() -> None:
    ended = replace(silent(0), exit=ExitRecord(ended_at="", outcome="done", exit_code=0, message="", seconds=1))
    for seconds in (0, 10_000):
        now = START + timedelta(seconds=seconds)
        assert (ended.is_lost(now), ended.is_alive(now)) == (False, False)


def test_only_the_newest_attempt_may_be_alive_and_by_the_readers_own_patience() -> None:
    run = make_run(MemoryStorage("alive"), usd_per_hour=36.0)
    for number in (1, 2):
        claim(run, number, 0)
    attempts, now = read_attempts(run), START + timedelta(seconds=100)
    assert bill_of(run, now=now).seconds == 100
    assert bill_of(run).seconds == 0
    assert bill_of_attempts(run.plan(), [], attempts, now=now, lost_after_s=100).seconds == 100
    assert bill_of_attempts(run.plan(), [], attempts, now=now, lost_after_s=99).seconds == 0


# --- sums ---


def charge(seconds: float, usd_per_hour: float | None, on_demand: float | None = None, backend: str = "ec2") -> Charge:
    return Charge(1, "i", MACHINE, None, "spot", seconds, usd_per_hour, on_demand, backend)


def test_a_bill_adds_up_what_is_rented_and_what_has_a_price() -> None:
    bill = Bill((charge(3600, 10.0, 30.0), charge(1800, 20.0, 30.0), charge(100, None, None, "local")))
    assert (bill.seconds, bill.usd, bill.saved_usd) == (5500, 20.0, 25.0)
    assert bill.budgeted_usd(1000.0) == 20.0
    own = Bill((charge(3600, 2.0, 2.0, "local"), charge(3600, None, None, "docker")))
    assert (own.usd, own.saved_usd, own.budgeted_usd(1000.0)) == (2.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("backend", "budgeted"),
    [("local", 0), ("docker", 0), ("ec2", 50), ("sagemaker", 50), ("of a newer version", 50)],
)
def test_a_machine_without_a_price_counts_against_the_budget_unless_it_is_the_users_own(
    backend: str, budgeted: float
) -> None:
    bill = Bill((charge(3600, None, None, backend),))
    assert (bill.usd, bill.budgeted_usd(50.0)) == (None, budgeted)


def test_one_unknown_price_makes_the_sum_unknown_but_not_what_counts_against_the_budget() -> None:
    bill = Bill((charge(3600, 10.0, 30.0), charge(1800, None, 30.0)))
    assert (bill.usd, bill.saved_usd) == (None, None)
    assert bill.budgeted_usd(50.0) == 10.0 + 25.0
    assert Bill(()).usd is None


# --- how far each attempt came ---


def commit(run: RunRecord, step: int, attempt: int) -> None:
    manifest = CheckpointManifest(step=step, attempt=attempt, round=0, created_at="", reason="time", parts=[], meta={})
    run.commit_checkpoint(manifest.sealed())


def test_the_outcomes_hold_what_each_attempt_reported_and_committed() -> None:
    run = make_run(MemoryStorage("outcomes"))
    claim(run, 1, 0)
    run.write_heartbeat(1, Heartbeat(at=at(1), phase="training", progress={"step": 9}))
    for step in (8, 4):
        commit(run, step, 1)
    end(run, 1, 10, outcome="machine_error", message="SIGKILL")
    claim(run, 2, 20)
    run.write_heartbeat(2, Heartbeat(at=at(21), phase="training", progress={"step": "no number"}))
    claim(run, 3, 30)
    commit(run, 12, 3)
    first, second, third = attempt_outcomes(run)
    assert (first.attempt, first.outcome, first.message) == (1, Outcome.MACHINE_ERROR, "SIGKILL")
    assert (first.reached_step, first.committed_step) == (9, 8)
    assert (second.attempt, second.outcome, second.message) == (2, Outcome.INTERRUPTED, "it vanished")
    assert (second.reached_step, second.committed_step) == (0, 0)
    assert (third.attempt, third.reached_step, third.committed_step) == (3, 0, 12)
