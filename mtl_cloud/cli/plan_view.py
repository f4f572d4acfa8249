"""Print a plan: its summary, then machines, time and cost, quotas and checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.output import print_pairs, print_table, print_warnings
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.planning.plan import worst_case_usd
from mtl_cloud.report.formatting import dollars, duration, instant

if TYPE_CHECKING:
    from mtl_cloud.catalog import InstanceType
    from mtl_cloud.runs.plan_facts import Check, Estimate, PlanFacts, Quota
    from mtl_cloud.runs.schema import PlanRecord

__all__ = ["print_estimates", "print_plan"]

_COLOURS = {"ok": "green", "failed": "red", "unknown": "yellow"}


def print_plan(plan: PlanRecord) -> None:
    """Print the whole plan; warnings go to standard error."""
    facts = plan.parsed_facts
    print_pairs(_summary(plan, facts))
    if facts.candidates:
        _print_machines(facts, gpu_count=compute_of(plan).gpu_count)
        print_estimates(facts.estimates)
        _print_quotas(facts.quotas)
        _print_checks(facts.checks)
        click.echo("\nthe exact requests: --requests")
    print_warnings(plan.warnings)


def _summary(plan: PlanRecord, facts: PlanFacts) -> list[tuple[str, str]]:
    most, resume = worst_case_usd(plan), facts.resume
    looked_up = f"looked up {instant(facts.looked_up_at)} as {facts.identity}" if facts.looked_up_at else ""
    tables = f"price tables of {facts.collected} (offline; AWS not queried)" if facts.collected else ""
    return [
        ("job", plan.name),
        ("backend", plan.backend),
        ("rounds", str(plan.rounds)),
        ("processes", str(plan.processes)),
        ("price", "" if plan.usd_per_hour is None else f"{dollars(plan.usd_per_hour)} an hour at most"),
        ("time limit", "none" if plan.deadline_s is None else duration(plan.deadline_s)),
        ("budget", "" if plan.budget_usd is None else dollars(plan.budget_usd)),
        ("at most", "" if most is None else dollars(most)),
        ("storage", plan.storage),
        ("trainer", " ".join(plan.command)),
        ("resumes", "" if resume is None else f"after round {resume.rounds}, step {resume.step or 0}"),
        ("facts", looked_up or tables),
    ]


def _print_machines(facts: PlanFacts, gpu_count: int) -> None:
    """``gpu_count`` of each machine's GPUs are used."""
    machines = {candidate.machine.name: candidate.machine for candidate in facts.candidates}
    _title("machines, in order of preference")
    print_table(
        ("machine", "zone", "market", "now", "at most", "score", "price date", ""),
        [
            (
                offer.machine,
                offer.zone or "any",
                offer.market.replace("_", " "),
                _rate(offer.price.usd_per_hour if offer.price else None),
                _rate(offer.worst_usd_per_hour),
                str(offer.score or ""),
                offer.price.date if offer.price else "",
                _machine_words(machines[offer.machine], gpu_count),
            )
            for offer in facts.offers
        ],
        right=(3, 4, 5),
    )


def _rate(usd: float | None) -> str:
    return "unknown" if usd is None else f"{dollars(usd)}/h"


def _machine_words(machine: InstanceType, used: int) -> str:
    idle = f", {machine.gpu_count - used} idle" if machine.gpu_count > used else ""
    gpus = f"{machine.gpu_count} x {machine.gpu} {machine.gpu_memory_gib:g} GiB{idle}" if machine.gpu else "no GPU"
    return f"{gpus}, {machine.vcpus} vCPUs, {machine.memory_gib:g} GiB"


def print_estimates(estimates: Sequence[Estimate]) -> None:
    """Time and money of the whole job."""
    _title("the whole job")
    for known in estimates:
        click.echo(f"{known.machine}: {', '.join(_money(known))}")
        click.echo(click.style(f"  {_basis(known)}", dim=True))
    if not estimates:
        click.echo("duration unknown: no table has the speed of these machines")


def _money(known: Estimate) -> Iterator[str]:
    yield _span(*(duration(3600 * hours) for hours in known.hours))
    for market, (least, most) in known.usd.items():
        name = market.replace("_", " ")
        if most is None:
            yield f"{name} price unknown"
        elif least is None:
            yield f"{name} at most {dollars(most)}"
        else:
            yield f"{name} {_span(dollars(least), dollars(most))}"


def _basis(known: Estimate) -> str:
    rate = _span(*(f"{images:.0f}" for images in known.images_per_s))
    limits = {
        "gpu": f"assumed speeds of {known.date}",
        "loader": "limited by JPEG decoding in the loader workers",
        "steps": "steps too small to fill the GPU",
        "measured": "measured by the run",
    }
    work = f"{known.images:,} images of {known.gflop_per_image:.0f} GFLOP at {rate}/s ({limits[known.limit]})"
    download = duration(3600 * known.download_hours)
    return f"{work}; {download} to fetch the data" if known.download_hours > 0.01 else work


def _span(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _print_quotas(quotas: Sequence[Quota]) -> None:
    if quotas:
        _title("quotas")
    for quota in quotas:
        have = "not looked up" if quota.have is None else f"have {quota.have:g}"
        colour = "red" if quota.is_short else None
        code = f"{quota.code} " if quota.code else ""
        click.echo(f"{code}{quota.name}: need {quota.need:g} {quota.unit}, {click.style(have, fg=colour)}")


def _print_checks(checks: Sequence[Check]) -> None:
    if checks:
        _title("checks")
    for check in checks:
        status = click.style(check.status.ljust(7), fg=_COLOURS[check.status])
        click.echo(f"{status}  {check.name}: {check.detail}")
        if check.status == "failed" and check.hint:
            click.echo(f"         {click.style('hint:', bold=True)} {check.hint}")


def _title(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")
