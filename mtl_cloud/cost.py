"""What a run has cost, machine by machine, at the prices that its plan locked. Nothing is looked up afterwards.

AWS bills from the start of an instance to its end, so its boot is counted with its first attempt, and a machine that
never came so far has a line of its own. Of an attempt that vanished, the last sign of life is its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from mtl_cloud.records import AttemptRecord, BootRecord, PlanRecord
from mtl_cloud.run_record import RunRecord

__all__ = ["Bill", "Charge", "bill_of"]


@dataclass(frozen=True)
class Charge:
    """One life on one machine."""

    attempt: int | None
    """None: the machine failed before it."""
    instance: str
    """The instance's id, or the host's name."""
    machine: str | None
    """Instance type; None where no machine is rented."""
    zone: str | None
    market: str | None
    """on_demand | spot"""
    seconds: float
    usd_per_hour: float | None
    """None: the plan does not hold the price."""
    on_demand_usd_per_hour: float | None

    @property
    def usd(self) -> float | None:
        return _dollars(self.usd_per_hour, self.seconds)

    @property
    def saved_usd(self) -> float | None:
        """By spot, against the same time on demand."""
        at_most = _dollars(self.on_demand_usd_per_hour, self.seconds)
        return None if at_most is None or self.usd is None else at_most - self.usd


@dataclass(frozen=True)
class Bill:
    """All charges of a run so far, the oldest first."""

    charges: tuple[Charge, ...]

    @property
    def usd(self) -> float | None:
        """None unless every price is known."""
        return _sum(charge.usd for charge in self.charges)

    @property
    def saved_usd(self) -> float | None:
        return _sum(charge.saved_usd for charge in self.charges)


def bill_of(run: RunRecord, billed: Mapping[str, Sequence[Charge]] | None = None) -> Bill:
    """The run's bill up to its last sign of life.

    ``billed`` maps a backend to the charges that it told itself, which stand for those of its attempts.
    """
    told = {backend: charges for backend, charges in (billed or {}).items() if charges}
    plan, boots = run.plan(), {boot.instance: boot for boot in run.boots()}
    charges, seen = [charge for own in told.values() for charge in own], set()
    for attempt in run.attempts():
        if attempt.backend in told:
            continue
        boot = boots.get(attempt.host)
        start = attempt.started_at if boot is None or boot.instance in seen else boot.started_at
        seen.add(attempt.host)
        # A run that was moved has lived on other backends, under other plans.
        under = plan if attempt.backend == plan.backend else replace(plan, usd_per_hour=attempt.usd_per_hour)
        charges.append(_charge(under, boot, attempt.number, attempt.host, _seconds(start, _end(run, attempt))))
    failed = [boot for name, boot in boots.items() if name not in seen]
    charges += [_charge(plan, boot, None, boot.instance, _seconds(boot.started_at, boot.at)) for boot in failed]
    return Bill(tuple(charges))


def _charge(plan: PlanRecord, boot: BootRecord | None, attempt: int | None, instance: str, seconds: float) -> Charge:
    if boot is None:
        return Charge(attempt, instance, None, None, None, seconds, plan.usd_per_hour, plan.usd_per_hour)
    market = boot.market.replace("-", "_")
    on_demand = _price(plan, boot.instance_type, boot.zone, "on_demand")
    paid = on_demand if market == "on_demand" else _price(plan, boot.instance_type, boot.zone, market)
    return Charge(attempt, instance, boot.instance_type, boot.zone, market, seconds, paid, on_demand)


def _price(plan: PlanRecord, machine: str, zone: str, market: str) -> float | None:
    """The plan's price of the offer; of the one for all zones where none is for this."""
    offers = [
        offer
        for offer in cast("list[dict[str, Any]]", plan.facts.get("offers") or [])
        if (offer["machine"], offer["market"]) == (machine, market) and offer["zone"] in {zone, None} and offer["price"]
    ]
    if offers:
        return float(max(offers, key=lambda offer: offer["zone"] is not None)["price"]["usd_per_hour"])
    return _listed(plan, machine) if market == "on_demand" else None


def _listed(plan: PlanRecord, machine: str) -> float | None:
    """The on-demand price of a type that was not meant to be bought so."""
    candidates = cast("list[dict[str, Any]]", plan.facts.get("candidates") or [])
    found = [one["price"]["usd_per_hour"] for one in candidates if one["machine"]["name"] == machine and one["price"]]
    return float(found[0]) if found else None


def _end(run: RunRecord, attempt: AttemptRecord) -> str:
    end, beat = run.exit(attempt.number), run.heartbeat(attempt.number)
    return end.ended_at if end else beat.at if beat else attempt.started_at


def _seconds(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _dollars(usd_per_hour: float | None, seconds: float) -> float | None:
    return None if usd_per_hour is None else usd_per_hour * seconds / 3600


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
