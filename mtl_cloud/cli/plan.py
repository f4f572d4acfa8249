"""``mtl-cloud plan``: what a job would do and cost."""

from __future__ import annotations

import json
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
    from mtl_cloud.records import PlanRecord


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
    from mtl_cloud.runs import new_run_id
    from mtl_cloud.spec.load import load_job

    job = load_job(file, overrides=overrides).job
    now = datetime.now(UTC)
    plan = plan_run(job, gather_facts(job), run_id=new_run_id(job.name, now), now=now)
    if as_json:
        print_json(json.loads(plan.encode()))
    else:
        _print_plan(plan)


def _print_plan(plan: PlanRecord) -> None:
    from mtl_cloud.report.formatting import dollars, duration

    most = None if plan.usd_per_hour is None or plan.deadline_s is None else plan.usd_per_hour * plan.deadline_s / 3600
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
            *((f"fact: {name}", _short(value)) for name, value in plan.facts.items()),
        ]
    )
    for name, request in plan.requests.items():
        click.echo(f"\n{click.style(name, bold=True)}\n{json.dumps(request, indent=2, ensure_ascii=False)}")
    print_warnings(plan.warnings)


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
