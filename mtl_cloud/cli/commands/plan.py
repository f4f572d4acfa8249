"""``mtl-cloud plan``: what a job would do and cost."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, output_options, overrides_option
from mtl_cloud.cli.output import print_json

if TYPE_CHECKING:
    from mtl_cloud.jobspec.job import JobSpec
    from mtl_cloud.runs.plan_facts import Resume
    from mtl_cloud.runs.schema import PlanRecord

_NO_RUN = "000000"
"""Replaces the random part of a run id, so that the same job gives the same plan."""


@click.command(
    "plan",
    epilog=examples(
        "plan job.yaml", "plan job.yaml --offline --json", "plan job.yaml --set compute.budget_usd=50 --requests"
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@overrides_option
@click.option(
    "--offline/--online",
    "offline",
    default=None,
    help="Use the dated tables, or query AWS. Default: query AWS if credentials are found.",
)
@click.option("--run-id", metavar="ID", help="Plan the remainder of this run, at its measured speed.")
@click.option("--requests", "requests_only", is_flag=True, help="Print only the exact requests, as JSON.")
@output_options
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    offline: bool | None,
    run_id: str | None,
    requests_only: bool,
    as_json: bool,
) -> None:
    """Show what a job would do and cost: machines, prices, time, quotas, checks, exact requests. Starts nothing.

    JSON: the plan as the run record would hold it, with {run_id, backend, command, env, processes, rounds,
    deadline_s, usd_per_hour, budget_usd, facts, requests, warnings, ...}.
    """
    from mtl_cloud.jobspec.load import load_job
    from mtl_cloud.launch.submit import with_requests_if_known

    job = load_job(file, overrides=overrides).job
    plan = _plan(job, offline=offline, run_id=run_id)
    if requests_only:
        known, refusal = with_requests_if_known(plan)
        if refusal:
            raise refusal
        print_json(known.requests)
    elif as_json:
        print_json(json.loads(plan.encode()))
    else:
        from mtl_cloud.cli.plan_view import print_plan

        print_plan(plan)


def _plan(job: JobSpec, *, offline: bool | None, run_id: str | None) -> PlanRecord:
    from mtl_cloud.launch.submit import with_requests_if_known
    from mtl_cloud.planning.gather import clients_for, facts_of, with_dry_run
    from mtl_cloud.planning.plan import plan_run

    now = datetime.now(UTC)
    clients = clients_for(job, online=None if offline is None else not offline)
    facts = replace(facts_of(job, clients, now=now), resume=_resume(job, run_id))
    plan = plan_run(job, facts, run_id=run_id or f"{job.name}-{_NO_RUN}", now=now)
    if not facts.candidates:  # nothing is rented: there is nothing that would be asked for
        return plan
    plan, refusal = with_requests_if_known(plan)
    if refusal and facts.account:
        plan = replace(plan, warnings=[*plan.warnings, f"no exact requests: {refusal}"])
    return with_dry_run(plan, clients) if clients and facts.account else plan


def _resume(job: JobSpec, run_id: str | None) -> Resume | None:
    if run_id is None:
        return None
    from mtl_cloud.planning.lookup.resume import find_resume
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.storage import open_storage

    return find_resume(RunRecord(open_storage(job.storage), run_id))
