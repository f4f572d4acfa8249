"""The attempts of a run, as its record shows them: alive or lost, how many machine seconds, how many dollars.

Every command, ``follow`` and the supervisor's own limits ask here, so that they give one answer:

* An attempt is *lost* when its last heartbeat is older than ``LOST_AFTER_S``. A reader that compares that sign's
  time with its own clock grants ``CLOCK_SKEW_S`` more; one that has watched the silence itself (``follow``) need not.
* AWS bills a machine from its start to its end. So the boot counts with the machine's first attempt, and a machine
  that failed before any attempt has a charge of its own.
* An attempt that ended lasted as long as its own clock counted or as its two time stamps say, whichever is longer.
* One that is lost, or was replaced without an exit record, lasted until its last heartbeat; one that is alive lasts
  until now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from mtl_cloud.runs.charges import Bill, Charge
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, BootRecord, ExitRecord, Heartbeat, Outcome, PlanRecord

__all__ = [
    "CLOCK_SKEW_S",
    "LOST_AFTER_S",
    "LOST_BY_CLOCK_S",
    "AttemptOutcome",
    "AttemptState",
    "age_s",
    "attempt_outcomes",
    "bill_of",
    "bill_of_attempts",
    "read_attempt",
    "read_attempts",
]

LOST_AFTER_S = 90.0
"""Heartbeats come every 10 s at most; a storage may fail for a minute."""
CLOCK_SKEW_S = 300.0
"""The clocks of two machines may differ by this much."""
LOST_BY_CLOCK_S = LOST_AFTER_S + CLOCK_SKEW_S
"""Age of the last heartbeat, by another machine's clock, from which an attempt is lost."""


@dataclass(frozen=True)
class AttemptState:
    """One attempt, as the record shows it."""

    claim: AttemptRecord
    heartbeat: Heartbeat | None
    exit: ExitRecord | None

    @property
    def number(self) -> int:
        return self.claim.number

    @property
    def last_sign(self) -> str:
        """ISO 8601: its newest heartbeat, or its start before the first."""
        return self.heartbeat.at if self.heartbeat else self.claim.started_at

    def is_lost(self, now: datetime, lost_after_s: float = LOST_BY_CLOCK_S) -> bool:
        """Whether it stopped reporting without an exit record."""
        return self.exit is None and age_s(self.last_sign, now) > lost_after_s

    def is_alive(self, now: datetime) -> bool:
        """Whether it has not ended and its heartbeat is recent."""
        return self.exit is None and not self.is_lost(now)

    def seconds(self, alive_at: datetime | None = None) -> float:
        """From its start to its end. ``alive_at``: it is alive at that time; None: it ended or stopped reporting."""
        if self.exit is not None:
            stamps = _between(self.claim.started_at, self.exit.ended_at) if self.exit.ended_at else 0.0
            return max(self.exit.seconds, stamps)
        until_last_sign = _between(self.claim.started_at, self.last_sign)
        return until_last_sign if alive_at is None else max(until_last_sign, age_s(self.claim.started_at, alive_at))


def read_attempt(run: RunRecord, claim: AttemptRecord) -> AttemptState:
    return AttemptState(claim, run.heartbeat(claim.number), run.exit(claim.number))


def read_attempts(run: RunRecord) -> list[AttemptState]:
    """The run's attempts, oldest first."""
    return [read_attempt(run, claim) for claim in run.attempts()]


# --- dollars ---------------------------------------------------------------------------------------------------------


def bill_of(
    run: RunRecord, billed: Mapping[str, Sequence[Charge]] | None = None, *, now: datetime | None = None
) -> Bill:
    """The run's cost until ``now`` (None: until its last heartbeat), at the prices locked in its plan.

    ``billed`` maps a backend to the charges that the backend itself reports; they replace those of its attempts.
    """
    return bill_of_attempts(run.plan(), run.boots(), read_attempts(run), billed, now=now)


def bill_of_attempts(
    plan: PlanRecord,
    boots: Sequence[BootRecord],
    attempts: Sequence[AttemptState],
    billed: Mapping[str, Sequence[Charge]] | None = None,
    *,
    now: datetime | None = None,
    lost_after_s: float = LOST_BY_CLOCK_S,
) -> Bill:
    """``bill_of``, for a record that was read already. Pure."""
    reported = {backend: charges for backend, charges in (billed or {}).items() if charges}
    booted = {boot.instance: boot for boot in boots}
    charges, seen = [charge for own in reported.values() for charge in own], set[str]()
    for attempt in attempts:
        if attempt.claim.backend in reported:
            continue
        alive = now is not None and attempt is attempts[-1] and not attempt.is_lost(now, lost_after_s)
        seconds = attempt.seconds(now if alive else None)
        boot = booted.get(attempt.claim.host)
        if boot is not None and boot.instance not in seen:
            seconds += max(0.0, _between(boot.started_at, attempt.claim.started_at))
        seen.add(attempt.claim.host)
        charges.append(_charge_of_attempt(plan, boot, attempt.claim, seconds))
    failed = [boot for name, boot in booted.items() if name not in seen]
    charges += [_charge_of_boot(plan, boot, None, _between(boot.started_at, boot.at)) for boot in failed]
    return Bill(tuple(charges))


def _charge_of_attempt(plan: PlanRecord, boot: BootRecord | None, claim: AttemptRecord, seconds: float) -> Charge:
    if boot is not None:
        return _charge_of_boot(plan, boot, claim.number, seconds, backend=claim.backend)
    price = claim.usd_per_hour  # of the plan under which it ran: a run that was moved has had several
    if price is None and claim.backend == plan.backend:
        price = plan.usd_per_hour
    return Charge(claim.number, claim.host, None, None, None, seconds, price, price, claim.backend)


def _charge_of_boot(
    plan: PlanRecord, boot: BootRecord, attempt: int | None, seconds: float, *, backend: str = "ec2"
) -> Charge:
    market = boot.market.replace("-", "_")
    paid, on_demand = (_price(plan, boot.instance_type, boot.zone, one) for one in (market, "on_demand"))
    return Charge(attempt, boot.instance, boot.instance_type, boot.zone, market, seconds, paid, on_demand, backend)


def _price(plan: PlanRecord, machine: str, zone: str, market: str) -> float | None:
    """The plan's price of the offer in this zone, or of the offer for all zones."""
    found = [
        (offer.zone is not None, offer.price.usd_per_hour)
        for offer in plan.parsed_facts.offers
        if offer.price and (offer.machine, offer.market) == (machine, market) and offer.zone in {zone, None}
    ]
    if found:
        return max(found, key=itemgetter(0))[1]
    return _listed(plan, machine) if market == "on_demand" else None


def _listed(plan: PlanRecord, machine: str) -> float | None:
    """The on-demand price of a type that was to be bought in another market."""
    listed = {one.machine.name: one.price for one in plan.parsed_facts.candidates}.get(machine)
    return listed.usd_per_hour if listed else None


# --- how each ended --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttemptOutcome:
    """The end and the progress of an attempt, from which the failure policy decides."""

    attempt: int
    outcome: Outcome
    """One that vanished without an exit record was interrupted."""
    message: str
    reached_step: int = 0
    """The last step that its heartbeat reported."""
    committed_step: int = 0
    """The step of its newest checkpoint."""


def attempt_outcomes(run: RunRecord) -> list[AttemptOutcome]:
    """The outcome of each of the run's attempts, oldest first."""
    committed = {checkpoint.attempt: checkpoint.step for checkpoint in run.checkpoints()}  # sorted: the newest stays
    return [_outcome(attempt, committed.get(attempt.number, 0)) for attempt in read_attempts(run)]


def _outcome(attempt: AttemptState, committed_step: int) -> AttemptOutcome:
    step = attempt.heartbeat.progress.get("step") if attempt.heartbeat else None
    return AttemptOutcome(
        attempt=attempt.number,
        outcome=Outcome(attempt.exit.outcome) if attempt.exit else Outcome.INTERRUPTED,
        message=attempt.exit.message if attempt.exit else "it vanished",
        reached_step=step if isinstance(step, int) else 0,
        committed_step=committed_step,
    )


def age_s(sign: str, now: datetime) -> float:
    """Seconds from the ISO 8601 time ``sign`` to ``now``; negative where the clocks disagree."""
    return (now - datetime.fromisoformat(sign)).total_seconds()


def _between(start: str, end: str) -> float:
    return max(0.0, age_s(start, datetime.fromisoformat(end)))
