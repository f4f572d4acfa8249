"""``mtl-cloud plan``: what a job would do and cost."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import (
    examples,
    output_options,
    overrides_option,
    print_json,
    print_pairs,
    print_warnings,
)

if TYPE_CHECKING:
    from mtl_cloud.plan import Candidate, Facts
    from mtl_cloud.records import PlanRecord

_NO_RUN = "000000"
"""Where a run's id has its random part: a plan is no run, and the same job gives the same plan."""


@click.command("plan", epilog=examples("plan job.yaml", "plan job.yaml --set compute.budget_usd=50 --json"))
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@overrides_option
@output_options
def command(file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a job would do and cost: machine, price, limits, and the exact requests. Starts nothing.

    JSON: the plan as the run record would hold it, with {run_id, backend, command, env, processes, rounds,
    deadline_s, usd_per_hour, budget_usd, facts, requests, warnings, ...}.
    """
    from mtl_cloud.plan import gather_facts, plan_run
    from mtl_cloud.spec.load import load_job

    job = load_job(file, overrides=overrides).job
    facts = gather_facts(job)
    plan = plan_run(job, facts, run_id=f"{job.name}-{_NO_RUN}", now=datetime.now(UTC))
    if facts.candidates:  # a machine is rented: show exactly what would be asked for
        plan = _with_requests(plan)
    if as_json:
        print_json(json.loads(plan.encode()))
    else:
        _print_plan(plan, facts)


def _with_requests(plan: PlanRecord) -> PlanRecord:
    """A plan of which the account is not known has no requests yet, and says so."""
    from mtl_cloud.errors import LaunchError
    from mtl_cloud.launch import LAUNCHERS, get_launcher
    from mtl_cloud.submit import with_requests

    if plan.backend not in LAUNCHERS:
        return plan
    try:
        return with_requests(plan, get_launcher(plan.backend))
    except LaunchError as error:
        return replace(plan, warnings=[*plan.warnings, f"no exact requests: {error} ({error.hint})"])


def _print_plan(plan: PlanRecord, facts: Facts) -> None:
    from mtl_cloud.plan import worst_case_usd
    from mtl_cloud.report.formatting import dollars, duration

    most = worst_case_usd(plan)
    print_pairs(
        [
            ("job", plan.name),
            ("backend", plan.backend),
            ("rounds", str(plan.rounds)),
            ("processes", str(plan.processes)),
            ("price", "" if plan.usd_per_hour is None else f"{dollars(plan.usd_per_hour)} an hour"),
            ("time limit", "none" if plan.deadline_s is None else duration(plan.deadline_s)),
            ("budget", "" if plan.budget_usd is None else dollars(plan.budget_usd)),
            ("at most", "" if most is None else dollars(most)),
            ("storage", plan.storage),
            ("trainer", " ".join(plan.command)),
            *(("machine", _machine_words(candidate)) for candidate in facts.candidates),
        ]
    )
    if plan.requests:
        click.echo(f"\n{click.style('request', bold=True)}\n{json.dumps(plan.requests, indent=2, ensure_ascii=False)}")
    print_warnings(plan.warnings)


def _machine_words(candidate: Candidate) -> str:
    machine, price = candidate.machine, candidate.price
    gpus = f"{machine.gpu_count} x {machine.gpu} {machine.gpu_memory_gib:g} GiB" if machine.gpu else "no GPU"
    cost = f"${price.usd_per_hour:.2f} an hour in {price.region} ({price.date})" if price else "price unknown"
    return f"{machine.name}: {gpus}, {machine.vcpus} vCPUs, {machine.memory_gib:g} GiB, {cost}"
