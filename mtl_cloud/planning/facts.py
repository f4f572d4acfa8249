"""What a plan rests on, as plain values: machines, offers, quotas, checks, and where a run would resume.

``gather_facts`` takes them from the shipped tables alone. ``mtl_cloud.planning.lookup`` asks AWS, and keeps the tables'
values where AWS does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from mtl_cloud import catalog
from mtl_cloud.catalog import QUOTA_NAMES, InstanceType, Price
from mtl_cloud.catalog.prices import PriceBook, shipped_prices
from mtl_cloud.container.image import image_content
from mtl_cloud.jobspec.job import DockerCompute, Ec2Compute, JobSpec, SageMakerCompute
from mtl_cloud.json_types import Json

__all__ = [
    "Candidate",
    "Check",
    "Facts",
    "Market",
    "Offer",
    "Quota",
    "Resume",
    "gather_facts",
    "markets_of",
    "offers_of",
]

Market: TypeAlias = Literal["on_demand", "spot"]


@dataclass(frozen=True)
class Candidate:
    """A machine that the job accepts, with its on-demand price there (None: nobody told it)."""

    machine: InstanceType
    price: Price | None


@dataclass(frozen=True)
class Offer:
    """One way to get a machine: a type, in a zone, in a market."""

    machine: str
    zone: str | None
    """None: whichever; the tables know no zones."""
    market: Market
    price: Price | None
    """Now."""
    worst_usd_per_hour: float | None
    """Spot follows demand, but never costs more than on demand."""
    score: int | None = None
    """Spot placement score of the zone, 1 to 10: how likely AWS holds it to have the machine."""


@dataclass(frozen=True)
class Quota:
    """A limit of the account that the job counts against."""

    name: str
    market: Market
    unit: str
    """``vCPUs`` (EC2) or ``instances`` (SageMaker)."""
    need: float
    code: str | None = None
    """Of Service Quotas; None where only the name is known."""
    have: float | None = None
    """None: nobody told it."""

    @property
    def is_short(self) -> bool:
        return self.have is not None and self.have < self.need


@dataclass(frozen=True)
class Check:
    """Something that was tried, so that it does not fail when it costs money."""

    name: str
    status: Literal["ok", "failed", "unknown"]
    """``unknown``: it could not be tried."""
    detail: str
    hint: str | None = None


@dataclass(frozen=True)
class Resume:
    """Where a run of that id would go on."""

    run_id: str
    rounds: int
    """Done."""
    step: int | None
    """Of the newest complete checkpoint; None: from the beginning."""
    images_per_s: float | None
    """Median of the rounds done."""


@dataclass(frozen=True)
class Facts:
    """What was looked up, once, for one plan."""

    collected: str | None = None
    """ISO date of the machine facts; None where no machine is rented."""
    candidates: tuple[Candidate, ...] = ()
    """In the job's order of preference."""
    machines: int = 1
    """How many are rented together."""
    image: str | None = None
    """Reference of this version's image at the backend; None where none is used, or the registry is not known."""
    offers: tuple[Offer, ...] = ()
    """In the order in which they are wanted."""
    quotas: tuple[Quota, ...] = ()
    checks: tuple[Check, ...] = ()
    resume: Resume | None = None
    looked_up_at: str | None = None
    """ISO 8601; None: nobody was asked, all is from the tables."""
    identity: str | None = None
    """ARN of who asked."""
    account: dict[str, Json] | None = None
    """What the backend's requests need of the account; ``plan.json`` holds it under the backend's name."""

    @property
    def usd_per_hour(self) -> float | None:
        """Of the dearest candidate, because any of them may be the one, times the machines; None unless all prices are
        known."""
        prices = [candidate.price for candidate in self.candidates]
        known = [price.usd_per_hour for price in prices if price]
        return self.machines * max(known) if known and len(known) == len(prices) else None

    def document(self, backend: str) -> dict[str, Json]:
        """As ``plan.json`` holds it; what is not known is left out."""
        told: dict[str, Any] = {
            "offers": [asdict(offer) for offer in self.offers],
            "quotas": [asdict(quota) for quota in self.quotas],
            "checks": [asdict(check) for check in self.checks],
            "resume": asdict(self.resume) if self.resume else None,
            "looked_up_at": self.looked_up_at,
            "identity": self.identity,
            backend: self.account,
        }
        return {
            "collected": self.collected,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            **{name: value for name, value in told.items() if value},
        }


def gather_facts(job: JobSpec, prices: PriceBook | None = None) -> Facts:
    """Offline: from the dated tables, by default those that are shipped.

    Raises ``PlanError`` for a type that they do not hold.
    """
    compute, book = job.compute, prices or shipped_prices()
    if isinstance(compute, DockerCompute):
        return Facts(image=image_content(os.environ).reference)
    if not isinstance(compute, Ec2Compute | SageMakerCompute):
        return Facts()
    machines = [catalog.instance_type(name) for name in compute.instance_types]
    candidates = tuple(Candidate(machine, book.on_demand.get((machine.name, compute.region))) for machine in machines)
    spot = {name: summary.price for (name, region), summary in book.spot.items() if region == compute.region}
    return Facts(
        collected=catalog.collected(),
        candidates=candidates,
        machines=job.instances,
        offers=tuple(offers_of(job, candidates, [(name, None, price, None) for name, price in spot.items()], {})),
        quotas=tuple(_quotas(job, machines)),
    )


def markets_of(job: JobSpec) -> tuple[Market, ...]:
    """In the order in which the job tries them."""
    ways: dict[str, tuple[Market, ...]] = {"spot": ("spot",), "spot_then_on_demand": ("spot", "on_demand")}
    return ways.get(getattr(job.compute, "purchase", ""), ("on_demand",))


def offers_of(
    job: JobSpec,
    candidates: Iterable[Candidate],
    spot: Iterable[tuple[str, str | None, Price, int | None]],
    zones: dict[str, tuple[str, ...]],
) -> Iterator[Offer]:
    """All ways to get a machine, in the job's order: market, type, and within it the cheapest zone first.

    ``spot`` holds (type, zone, price, score); ``zones`` the zones that offer each type, where that is known.
    """
    now = {(name, zone): (price, score) for name, zone, price, score in spot}
    for market in markets_of(job):
        for candidate in candidates:
            name, price = candidate.machine.name, candidate.price
            worst = price.usd_per_hour if price else None
            found = []
            told = tuple(sorted({zone for other, zone in now if other == name and zone})) or (None,)
            for zone in zones.get(name, told):
                paid, score = (price, None) if market == "on_demand" else now.get((name, zone), (None, None))
                found.append(Offer(name, zone, market, paid, worst, score))
            yield from sorted(found, key=lambda offer: (offer.price is None, offer.price and offer.price.usd_per_hour))


def _quotas(job: JobSpec, machines: Iterable[InstanceType]) -> Iterator[Quota]:
    """One a quota: the largest machine counts. A reservation's machine is counted when it is reserved."""
    if getattr(job.compute, "capacity_reservation", None) is not None:
        return
    needs: dict[tuple[Market, str], int] = {}
    units = {}
    for market in markets_of(job):
        for machine in machines:
            quota = machine.quota(spot=market == "spot")
            if quota is not None:
                need = job.instances * (1 if machine.is_sagemaker else machine.vcpus)
                needs[market, quota] = max(need, needs.get((market, quota), 0))
                units[quota] = "instances" if machine.is_sagemaker else "vCPUs"
    for (market, quota), need in needs.items():
        code = quota if quota in QUOTA_NAMES else None
        yield Quota(QUOTA_NAMES.get(quota, quota), market, units[quota], need, code)
