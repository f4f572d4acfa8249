"""All facts of a job, from AWS or, where it does not answer, from the tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.catalog import Price
from mtl_cloud.catalog.prices import PriceBook
from mtl_cloud.container.image import CLOUD_PLATFORM, image_content
from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import Ec2Compute, JobSpec, SageMakerCompute
from mtl_cloud.planning.facts import Facts, gather_facts, markets_of, offers_of
from mtl_cloud.planning.lookup.account import look_up_account, look_up_identity
from mtl_cloud.planning.lookup.checks import check_inputs, check_storage
from mtl_cloud.planning.lookup.prices import look_up_on_demand, look_up_spot_now
from mtl_cloud.runs.plan_facts import Candidate, Check, Ec2Account, Quota, SageMakerAccount

__all__ = ["look_up"]

T = TypeVar("T")


@dataclass
class _Questions:
    """Runs queries, and records a check for each that failed."""

    checks: list[Check] = field(default_factory=list)

    def ask(self, name: str, question: Callable[[], T], otherwise: T) -> T:
        """The answer, or ``otherwise`` (from the tables) if the query fails."""
        try:
            return question()
        except LaunchError as error:
            self.checks.append(Check(name, "unknown", str(error), error.hint))
            return otherwise

    def need(self, name: str, question: Callable[[], T]) -> T | None:
        """The answer, or None if the query fails; the run then cannot be started."""
        try:
            return question()
        except LaunchError as error:
            self.checks.append(Check(name, "failed", str(error), error.hint))
            return None


def look_up(
    job: JobSpec,
    clients: ClientMaker,
    *,
    now: datetime,
    inputs: Sequence[str] = (),
    prices: PriceBook | None = None,
    thorough: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> Facts:
    """The facts of a job. Queries nothing if no machine is rented.

    ``thorough`` also queries facts that a launch does not need: zones and their scores, quotas, and access to
    ``inputs`` and storage. A failed query becomes a check, never an exception; the tables' values then remain.
    """
    facts, questions, compute = gather_facts(job, prices), _Questions(), job.compute
    if not isinstance(compute, Ec2Compute | SageMakerCompute):
        return facts
    identity = questions.need("identity", partial(look_up_identity, clients))
    if identity is None:
        return replace(facts, checks=tuple(questions.checks))
    image = image_content(environ, platform=CLOUD_PLATFORM)
    account = questions.need("account", partial(look_up_account, clients, compute, image_tag=image.tag))
    candidates = _priced(facts.candidates, clients, questions, now)
    zones = _zones_of(candidates, clients, questions) if thorough else {}
    spot = _spot(job, candidates, clients, questions, now, thorough=thorough)
    quotas = [_with_limit(quota, clients, questions) if thorough else quota for quota in facts.quotas]
    reached = [*check_inputs(clients, inputs), check_storage(clients, job.storage)] if thorough else []
    return replace(
        facts,
        candidates=candidates,
        offers=tuple(offers_of(job, candidates, spot, zones)),
        quotas=tuple(quotas),
        checks=(*questions.checks, *reached),
        looked_up_at=now.isoformat(),
        identity=identity,
        ec2=account if isinstance(account, Ec2Account) else None,
        sagemaker=account if isinstance(account, SageMakerAccount) else None,
    )


# --- prices, zones, capacity -----------------------------------------------------------------------------------------


def _priced(
    candidates: Sequence[Candidate], clients: ClientMaker, questions: _Questions, now: datetime
) -> tuple[Candidate, ...]:
    names = [candidate.machine.name for candidate in candidates]
    nothing: dict[str, Price] = {}
    found = questions.ask("prices", partial(look_up_on_demand, clients, names, now=now), nothing)
    return tuple(replace(one, price=found.get(one.machine.name, one.price)) for one in candidates)


def _zones_of(
    candidates: Sequence[Candidate], clients: ClientMaker, questions: _Questions
) -> dict[str, tuple[str, ...]]:
    names = _ec2_names(candidates)
    nowhere: dict[str, tuple[str, ...]] = {}
    return questions.ask("zones", partial(_zones, clients, names), nowhere) if names else nowhere


def _spot(
    job: JobSpec,
    candidates: Sequence[Candidate],
    clients: ClientMaker,
    questions: _Questions,
    now: datetime,
    *,
    thorough: bool,
) -> list[tuple[str, str | None, Price, int | None]]:
    """(type, zone, price, score), for ``offers_of``."""
    names = _ec2_names(candidates)
    if not names or "spot" not in markets_of(job):
        return []
    free: dict[tuple[str, str], Price] = {}
    nowhere: dict[str, int] = {}
    prices = questions.ask("spot prices", partial(look_up_spot_now, clients, names, now=now), free)
    scores = questions.ask("capacity", partial(_scores, clients, names), nowhere) if thorough else nowhere
    return [(name, zone, price, scores.get(zone)) for (name, zone), price in prices.items()]


def _ec2_names(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.machine.name for candidate in candidates if not candidate.machine.is_sagemaker]


def _zones(clients: ClientMaker, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Type -> the zones of the region that offer it. Raises ``LaunchError`` when none offers any."""
    with translated("ec2", where="compute.instance_type"):
        pages = clients("ec2").get_paginator("describe_instance_type_offerings")
        query = {"LocationType": "availability-zone", "Filters": [{"Name": "instance-type", "Values": list(names)}]}
        rows = [row for page in pages.paginate(**query) for row in page["InstanceTypeOfferings"]]
    found = {name: tuple(sorted(row["Location"] for row in rows if row["InstanceType"] == name)) for name in names}
    if not any(found.values()):
        raise LaunchError(
            f"compute.instance_type: {clients.region} does not offer {', '.join(names)}",
            hint="choose another region or type: `mtl-cloud instances`",
        )
    return found


def _scores(clients: ClientMaker, names: Sequence[str]) -> dict[str, int]:
    """Zone -> spot placement score, 1 to 10."""
    with translated("ec2", where=clients.region):
        ec2 = clients("ec2")
        answer = ec2.get_spot_placement_scores(
            InstanceTypes=list(names), TargetCapacity=1, SingleAvailabilityZone=True, RegionNames=[clients.region]
        )
        zones = ec2.describe_availability_zones()["AvailabilityZones"]
    names_of = {zone["ZoneId"]: zone["ZoneName"] for zone in zones}
    scores = answer["SpotPlacementScores"]
    return {
        names_of[row["AvailabilityZoneId"]]: row["Score"] for row in scores if row["AvailabilityZoneId"] in names_of
    }


# --- quotas ----------------------------------------------------------------------------------------------------------


def _with_limit(quota: Quota, clients: ClientMaker, questions: _Questions) -> Quota:
    return replace(quota, have=questions.ask("quota", partial(_limit, quota, clients), None))


def _limit(quota: Quota, clients: ClientMaker) -> float | None:
    """EC2's quota by its code; SageMaker's, which has a code for each type and use, by its name."""
    with translated("service-quotas", where=quota.name):
        quotas = clients("service-quotas")
        if quota.code:
            return float(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=quota.code)["Quota"]["Value"])
        pages = quotas.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
        named = (row["Value"] for page in pages for row in page["Quotas"] if row["QuotaName"] == quota.name)
        return next(map(float, named), None)
