"""The plan: what will run, until when, and what it may cost. Pure; nothing here asks a cloud.

Facts are gathered once, from the shipped tables (``gather_facts``) or from AWS (``mtl_cloud.planning.lookup``).
``plan_run`` is a function of the job, those facts, a run id and a time. An unknown price is reported as unknown, never
assumed to be zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

from mtl_cloud.errors import PlanError
from mtl_cloud.jobspec.constraints import check_constraints
from mtl_cloud.jobspec.finding import path_of
from mtl_cloud.jobspec.job import Ec2Compute, JobSpec, LocalCompute, SageMakerCompute
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.json_types import Json
from mtl_cloud.planning.estimate import estimate
from mtl_cloud.planning.facts import Facts, gather_facts
from mtl_cloud.runs.plan_facts import Candidate, Estimate, Offer, Range
from mtl_cloud.runs.schema import PlanRecord

__all__ = [
    "Facts",
    "estimates_of",
    "gather_facts",
    "inputs_of",
    "plan_run",
    "priced_estimates",
    "require_launchable",
    "worst_case_usd",
]

COMMAND = ("python", "-m", "mtl_cloud.train")


def plan_run(job: JobSpec, facts: Facts, *, run_id: str, now: datetime) -> PlanRecord:
    """Make the plan: the contents of ``plan.json``.

    Raises
    ------
    PlanError
        ``budget_usd`` for a rented machine whose price is unknown: the budget could not be enforced.
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
        image=_image(job, facts),
        spec_digest=sha256(job_to_json(job)).hexdigest(),
        inputs=list(inputs_of(job)),
        secrets=_secrets(job),
        deadline_s=_deadline_s(job, facts),
        usd_per_hour=facts.usd_per_hour,
        budget_usd=job.compute.budget_usd,
        tags=dict(job.tags),
        facts=replace(facts, estimates=tuple(priced_estimates(job, facts))).document(),
        warnings=list(_warnings(job, facts)),
    )


def require_launchable(facts: Facts) -> None:
    """Raises ``PlanError`` with every failed check: obstacles that waiting does not remove."""
    failed = [check for check in facts.checks if check.status == "failed"]
    reasons = [f"{check.name}: {check.detail}" for check in failed] + list(_short_quotas(facts))
    if reasons:
        hint = next((check.hint for check in failed if check.hint), "mtl-cloud plan shows all that was looked up")
        raise PlanError("\n".join(reasons), hint=hint)


def worst_case_usd(plan: PlanRecord) -> float | None:
    """Dollars if the machine runs until the deadline; None if the price or the deadline is unknown."""
    if plan.usd_per_hour is None or plan.deadline_s is None:
        return None
    return plan.usd_per_hour * plan.deadline_s / 3600


def estimates_of(job: JobSpec, facts: Facts) -> list[Estimate]:
    """The estimate of the remaining work for each candidate; candidates of unknown speed are left out."""
    resume = facts.resume
    found = (
        estimate(
            job,
            candidate.machine,
            measured_images_per_s=resume.images_per_s if resume else None,
            rounds_done=resume.rounds if resume else 0,
        )
        for candidate in facts.candidates
    )
    return [known for known in found if known]


def priced_estimates(job: JobSpec, facts: Facts) -> list[Estimate]:
    """The same estimates, with dollars by market."""
    return [replace(known, usd=_usd_by_market(known, facts)) for known in estimates_of(job, facts)]


def _usd_by_market(known: Estimate, facts: Facts) -> dict[str, tuple[float | None, float | None]]:
    markets: dict[str, list[Offer]] = {}
    for offer in facts.offers:
        if offer.machine == known.machine:
            markets.setdefault(offer.market, []).append(offer)
    return {market: _usd(known.hours, offers, facts.machines) for market, offers in markets.items()}


def _usd(hours: Range, offers: list[Offer], machines: int) -> tuple[float | None, float | None]:
    """An unknown spot price is at most the on-demand price."""
    now = [offer.price.usd_per_hour for offer in offers if offer.price]
    most = [offer.price.usd_per_hour if offer.price else offer.worst_usd_per_hour for offer in offers]
    known = [usd for usd in most if usd is not None]
    return (
        hours[0] * machines * min(now) if len(now) == len(offers) else None,
        hours[1] * machines * max(known) if len(known) == len(offers) else None,
    )


def _image(job: JobSpec, facts: Facts) -> str | None:
    """The image pinned by digest from the look-up, or as the job names it."""
    named = None if isinstance(job.compute, LocalCompute) else job.compute.image
    return facts.account.image if facts.account else named or facts.image


def inputs_of(job: JobSpec) -> Iterator[str]:
    """Paths and URLs that the trainer reads: datasets and pretrained weights."""
    read = [dataset.uri for dataset in job.datasets] + [weights for _, weights in job.model.pretrained]
    yield from dict.fromkeys(uri for uri in read if uri is not None)


def _secrets(job: JobSpec) -> dict[str, Json]:
    """The secret references of `env`, each with its region; None: boto3's default region."""
    region = job.compute.region if isinstance(job.compute, Ec2Compute | SageMakerCompute) else None
    references = {name: value for name, value in job.env.items() if not isinstance(value, str)}
    return {name: {**value.model_dump(exclude_none=True), "region": region} for name, value in references.items()}


def _deadline_s(job: JobSpec, facts: Facts) -> float | None:
    """The earlier of `max_hours` and the time at which the most expensive candidate has used up `budget_usd`."""
    hours = [job.compute.max_hours] if job.compute.max_hours is not None else []
    if job.compute.budget_usd is not None and facts.usd_per_hour:
        hours.append(job.compute.budget_usd / facts.usd_per_hour)
    return min(hours) * 3600 if hours else None


def _warnings(job: JobSpec, facts: Facts) -> Iterator[str]:
    for finding in check_constraints(job):
        if not finding.fatal:
            yield f"{path_of(finding.loc)}: {finding.message}"
    if job.compute.budget_usd is not None and not facts.candidates:
        yield "compute.budget_usd: no machine is rented, so it limits nothing"
    yield from _shortages(job, facts)
    if _unpriced(facts):
        yield f"compute.instance_type: the price of {_names(_unpriced(facts))} is unknown"
    for date in sorted({candidate.price.date for candidate in facts.candidates if candidate.price}):
        yield f"compute.instance_type: on-demand prices are those of {date}"


def _shortages(job: JobSpec, facts: Facts) -> Iterator[str]:
    """Warnings about time and quota."""
    deadline, least = _deadline_s(job, facts), [known.hours[0] for known in estimates_of(job, facts)]
    if deadline is not None and least and min(least) * 3600 > deadline:
        hours = f"{min(least):.0f} hours at best by the estimate"
        yield f"compute.max_hours: the job takes {hours}, and stops after {deadline / 3600:.0f}"
    yield from _short_quotas(facts)


def _short_quotas(facts: Facts) -> Iterator[str]:
    for quota in facts.quotas:
        if quota.is_short:
            code = f" ({quota.code})" if quota.code else ""
            have = f"the quota {quota.name}{code} is {quota.have:g} {quota.unit}"
            yield f"compute.instance_type: {have}, and the job needs {quota.need:g}"


def _unpriced(facts: Facts) -> list[Candidate]:
    return [candidate for candidate in facts.candidates if candidate.price is None]


def _names(candidates: list[Candidate]) -> str:
    return ", ".join(candidate.machine.name for candidate in candidates)
