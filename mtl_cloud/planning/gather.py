"""Gather the facts for a plan, from AWS or from tables: for ``plan`` and ``submit``."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtl_cloud.aws import ClientMaker
    from mtl_cloud.jobspec.job import JobSpec
    from mtl_cloud.planning.facts import Facts
    from mtl_cloud.runs.schema import PlanRecord

__all__ = ["clients_for", "facts_of", "launch_facts", "with_dry_run"]


def clients_for(job: JobSpec, *, online: bool | None = None) -> ClientMaker | None:
    """Clients for the job's region; None if AWS is not to be queried.

    By default (``online`` None) AWS is queried if the job rents a machine and credentials are found.
    """
    from mtl_cloud.jobspec.job import Ec2Compute, SageMakerCompute

    if not isinstance(job.compute, Ec2Compute | SageMakerCompute) or online is False:
        return None
    if online is None:
        from mtl_cloud.planning.lookup.credentials import can_ask_aws

        if not can_ask_aws(os.environ, Path.home()):
            return None
    from mtl_cloud.aws import AwsClients

    return AwsClients(job.compute.region)


def facts_of(job: JobSpec, clients: ClientMaker | None, *, now: datetime, thorough: bool = True) -> Facts:
    """Facts from AWS, or without clients from the tables (shipped, or cached by ``instances --refresh``)."""
    from mtl_cloud.catalog.prices import known_prices, price_cache
    from mtl_cloud.planning.facts import gather_facts
    from mtl_cloud.planning.plan import inputs_of

    prices = known_prices(price_cache())
    if clients is None:
        return gather_facts(job, prices)
    from mtl_cloud.planning.lookup import look_up

    return look_up(job, clients, now=now, inputs=list(inputs_of(job)), prices=prices, thorough=thorough)


def launch_facts(job: JobSpec, now: datetime) -> Facts:
    """The facts for a launch. Raises ``PlanError`` with every obstacle."""
    from mtl_cloud.jobspec.job import SageMakerCompute
    from mtl_cloud.planning.plan import require_launchable

    compute = job.compute
    # With both, SageMaker's request needs nothing of the account.
    says_all = isinstance(compute, SageMakerCompute) and compute.role is not None and compute.image is not None
    clients = clients_for(job, online=not says_all)
    facts = facts_of(job, clients, now=now, thorough=False)
    require_launchable(facts)
    return facts


def with_dry_run(plan: PlanRecord, clients: ClientMaker) -> PlanRecord:
    """The plan with an additional check: whether EC2 would permit its launch."""
    from mtl_cloud.planning.lookup import check_permission
    from mtl_cloud.runs.dataclass_json import to_json

    checks = (*plan.parsed_facts.checks, check_permission(clients, plan))
    return replace(plan, facts={**plan.facts, "checks": to_json(checks)})
