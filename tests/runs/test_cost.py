"""The bill of a run, against sums made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ec2_harness import World, ec2_plan
from run_harness import make_run

from mtl_cloud.catalog import Price
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.dataclass_json import to_json
from mtl_cloud.runs.plan_facts import Offer
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, BootRecord, ExitRecord, Heartbeat
from mtl_cloud.storage import MemoryStorage


def at(minute: int) -> str:
    return f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00+00:00"


def boot(run: RunRecord, instance: str, market: str, start: int, end: int, *, zone: str = "us-east-1a") -> None:
    record = BootRecord(
        instance=instance,
        instance_type="p4d.24xlarge",
        zone=zone,
        market=market,
        phase="running",
        message="",
        started_at=at(start),
        at=at(end),
    )
    run.storage.write(run.paths.boot(instance), record.encode())


def attempt(
    run: RunRecord, number: int, host: str, start: int, *, end: int | None = None, beat: int | None = None
) -> None:
    run.claim(AttemptRecord(number=number, started_at=at(start), host=host, pid=1, backend="ec2"))
    if beat is not None:
        run.write_heartbeat(number, Heartbeat(at=at(beat), phase="training"))
    if end is not None:
        ended = ExitRecord(
            ended_at=at(end), outcome="interrupted", exit_code=75, message="", seconds=60.0 * (end - start)
        )
        run.write_exit(number, ended)


OFFERS = [
    Offer("p4d.24xlarge", "us-east-1a", "spot", Price(10.0, "us-east-1", "2026-01-01", "a table"), None),
    Offer("p4d.24xlarge", None, "spot", Price(12.0, "us-east-1", "2026-01-01", "a table"), None),
]
LISTED = 21.957642
"""Of the shipped table."""


@pytest.fixture
def run() -> RunRecord:
    plan = ec2_plan(purchase="spot_then_on_demand")
    return World().make_run(replace(plan, facts={**plan.facts, "offers": to_json(OFFERS)}))


def test_each_machine_is_charged_from_its_boot_at_its_own_price(run: RunRecord) -> None:
    boot(run, "i-1", "spot", 0, 5)
    attempt(run, 1, "i-1", 6, end=60)
    boot(run, "i-2", "spot", 70, 75, zone="us-east-1b")
    attempt(run, 2, "i-2", 76, beat=100)
    boot(run, "i-3", "on-demand", 110, 112)
    attempt(run, 3, "i-3", 113, end=170)
    bill = bill_of(run)
    assert [(c.attempt, c.market, c.seconds / 60, c.usd_per_hour) for c in bill.charges] == [
        (1, "spot", 60, 10.0),
        (2, "spot", 30, 12.0),
        (3, "on_demand", 60, LISTED),
    ]
    assert bill.usd == pytest.approx(10.0 + 6.0 + LISTED)
    assert bill.saved_usd == pytest.approx((LISTED - 10.0) + (LISTED - 12.0) / 2)


def test_a_restart_on_the_same_machine_does_not_pay_for_its_boot_again(run: RunRecord) -> None:
    boot(run, "i-1", "spot", 0, 5)
    attempt(run, 1, "i-1", 6, end=30)
    attempt(run, 2, "i-1", 30, end=60)
    assert [charge.seconds / 60 for charge in bill_of(run).charges] == [30, 30]


def test_a_machine_that_never_came_to_work_is_on_the_bill(run: RunRecord) -> None:
    boot(run, "i-1", "spot", 0, 6)
    (charge,) = bill_of(run).charges
    assert charge.attempt is None
    assert charge.usd == pytest.approx(1.0)


def test_a_price_that_is_not_known_is_not_guessed(run: RunRecord) -> None:
    boot(run, "i-1", "capacity-block", 0, 6)
    attempt(run, 1, "i-1", 6, end=60)
    bill = bill_of(run)
    assert (bill.usd, bill.saved_usd) == (None, None)
    assert bill.charges[0].on_demand_usd_per_hour == LISTED


def test_a_run_on_this_machine_has_charges_without_prices() -> None:
    run = make_run(MemoryStorage("cost"))
    attempt(run, 1, "laptop", 0, end=10)
    (charge,) = bill_of(run).charges
    assert (charge.machine, charge.seconds, charge.usd) == (None, 600, None)
