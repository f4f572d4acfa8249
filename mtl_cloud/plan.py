"""The plan: what will run, until when, and what it may cost. Pure; nothing here asks a cloud.

``gather_facts`` looks once into the shipped tables; ``plan_run`` is a function of the job, those facts, a run id and a
time. A price that is not known is said to be unknown, never assumed to be nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256

from mtl_cloud import catalog
from mtl_cloud.catalog import InstanceType, Price
from mtl_cloud.errors import PlanError
from mtl_cloud.image import image_content
from mtl_cloud.records import Json, PlanRecord
from mtl_cloud.spec.facts import check_facts
from mtl_cloud.spec.finding import path_of
from mtl_cloud.spec.job import DockerCompute, Ec2Compute, JobSpec, LocalCompute, SageMakerCompute
from mtl_cloud.spec.load import job_to_json

__all__ = ["Candidate", "Facts", "gather_facts", "plan_run", "worst_case_usd"]

COMMAND = ("python", "-m", "mtl_cloud.train")


@dataclass(frozen=True)
class Candidate:
    """A machine that the job accepts, with its on-demand price there (None: no table holds it)."""

    machine: InstanceType
    price: Price | None


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

    @property
    def usd_per_hour(self) -> float | None:
        """Of the dearest candidate, because any of them may be the one, times the machines; None unless all prices are
        known."""
        prices = [candidate.price for candidate in self.candidates]
        known = [price.usd_per_hour for price in prices if price]
        return self.machines * max(known) if known and len(known) == len(prices) else None

    def document(self) -> dict[str, Json]:
        """As ``plan.json`` holds it."""
        return {
            "collected": self.collected,
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }


def gather_facts(job: JobSpec) -> Facts:
    """Offline: from the dated tables that are shipped. Raises ``PlanError`` for a type that they do not hold."""
    compute = job.compute
    if isinstance(compute, DockerCompute):
        return Facts(image=image_content(os.environ).reference)
    if not isinstance(compute, Ec2Compute | SageMakerCompute):
        return Facts()
    candidates = tuple(
        Candidate(catalog.instance_type(name), catalog.price(name, compute.region)) for name in compute.instance_types
    )
    return Facts(catalog.collected(), candidates, job.instances)


def plan_run(job: JobSpec, facts: Facts, *, run_id: str, now: datetime) -> PlanRecord:
    """What the run record's ``plan.json`` will say.

    Raises
    ------
    PlanError
        ``budget_usd`` on a rented machine whose price is unknown: nothing could hold it.
    """
    if job.compute.budget_usd is not None and facts.candidates and facts.usd_per_hour is None:
        raise PlanError(
            f"compute.budget_usd: the price of {_names(_unpriced(facts))} is unknown, so no deadline can hold a budget",
            hint="choose a region or type with a known price, or give max_hours alone",
        )
    return PlanRecord(
        run_id=run_id,
        name=job.name,
        created_at=now.isoformat(),
        backend=job.compute.backend,
        storage=job.storage,
        command=list(COMMAND),
        env={name: value for name, value in job.env.items() if isinstance(value, str)},
        processes=job.processes,
        rounds=job.training.rounds,
        compute=job.compute.model_dump(mode="json"),
        image=None if isinstance(job.compute, LocalCompute) else job.compute.image or facts.image,
        spec_digest=sha256(job_to_json(job)).hexdigest(),
        inputs=list(_inputs(job)),
        secrets=_secrets(job),
        deadline_s=_deadline_s(job, facts),
        usd_per_hour=facts.usd_per_hour,
        budget_usd=job.compute.budget_usd,
        tags=dict(job.tags),
        facts=facts.document(),
        warnings=list(_warnings(job, facts)),
    )


def worst_case_usd(plan: PlanRecord) -> float | None:
    """Dollars if the machine runs until the deadline; None when the price or the deadline is not known."""
    if plan.usd_per_hour is None or plan.deadline_s is None:
        return None
    return plan.usd_per_hour * plan.deadline_s / 3600


def _inputs(job: JobSpec) -> Iterator[str]:
    read = [dataset.uri for dataset in job.datasets] + [weights for _, weights in job.model.pretrained]
    yield from dict.fromkeys(uri for uri in read if uri is not None)


def _secrets(job: JobSpec) -> dict[str, Json]:
    """The references of `env`, each with the region to look it up in; None leaves that to boto3's usual chain."""
    region = job.compute.region if isinstance(job.compute, Ec2Compute | SageMakerCompute) else None
    references = {name: value for name, value in job.env.items() if not isinstance(value, str)}
    return {name: {**value.model_dump(exclude_none=True), "region": region} for name, value in references.items()}


def _deadline_s(job: JobSpec, facts: Facts) -> float | None:
    """The earlier of `max_hours` and the hour at which the dearest candidate has used up `budget_usd`."""
    hours = [job.compute.max_hours] if job.compute.max_hours is not None else []
    if job.compute.budget_usd is not None and facts.usd_per_hour:
        hours.append(job.compute.budget_usd / facts.usd_per_hour)
    return min(hours) * 3600 if hours else None


def _warnings(job: JobSpec, facts: Facts) -> Iterator[str]:
    for finding in check_facts(job):
        if not finding.fatal:
            yield f"{path_of(finding.loc)}: {finding.message}"
    if job.compute.budget_usd is not None and not facts.candidates:
        yield "compute.budget_usd: no machine is rented, so it limits nothing"
    if _unpriced(facts):
        yield f"compute.instance_type: the price of {_names(_unpriced(facts))} is unknown"
    for date in sorted({candidate.price.date for candidate in facts.candidates if candidate.price}):
        yield f"compute.instance_type: on-demand prices are those of {date}"


def _unpriced(facts: Facts) -> list[Candidate]:
    return [candidate for candidate in facts.candidates if candidate.price is None]


def _names(candidates: list[Candidate]) -> str:
    return ", ".join(candidate.machine.name for candidate in candidates)
