"""The facts of a job, gathered before it is planned. Their types are those of ``mtl_cloud.runs.plan_facts``.

``gather_facts`` takes them from the shipped tables alone. ``mtl_cloud.planning.lookup`` asks AWS, and keeps the tables'
values where AWS does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mtl_cloud import catalog
from mtl_cloud.catalog import QUOTA_NAMES, InstanceType, Price
from mtl_cloud.catalog.prices import PriceBook, shipped_prices
from mtl_cloud.container.image import image_content
from mtl_cloud.jobspec.job import DockerCompute, Ec2Compute, JobSpec, SageMakerCompute
from mtl_cloud.runs.plan_facts import Candidate, Market, Offer, PlanFacts, Quota

__all__ = ["Facts", "gather_facts", "markets_of", "offers_of"]


@dataclass(frozen=True)
class Facts(PlanFacts):
    """The facts that a plan is made from: those that it will hold, and two that become fields of its own."""

    machines: int = 1
    """Machines that are rented together."""
    image: str | None = None
    """Reference of this version's image at the backend; None where none is used, or the registry is not known."""

    @property
    def usd_per_hour(self) -> float | None:
        """Price of the dearest candidate, because any of them may be chosen, times the machines; None unless all prices
        are known."""
        prices = [candidate.price for candidate in self.candidates]
        known = [price.usd_per_hour for price in prices if price]
        return self.machines * max(known) if known and len(known) == len(prices) else None


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
    """The job's markets, in order of preference."""
    if not isinstance(job.compute, Ec2Compute | SageMakerCompute):
        return ("on_demand",)
    ways: dict[str, tuple[Market, ...]] = {"spot": ("spot",), "spot_then_on_demand": ("spot", "on_demand")}
    return ways.get(job.compute.purchase, ("on_demand",))


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
    if isinstance(job.compute, Ec2Compute) and job.compute.capacity_reservation is not None:
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
