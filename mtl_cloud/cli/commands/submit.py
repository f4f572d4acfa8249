"""``mtl-cloud submit``: start or resume a run, and follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, open_run, output_options, overrides_option
from mtl_cloud.cli.output import print_json, print_warnings
from mtl_cloud.errors import UsageError

if TYPE_CHECKING:
    from mtl_cloud.clock import Clock
    from mtl_cloud.launch import Launcher
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.runs.schema import PlanRecord


@click.command(
    "submit",
    epilog=examples(
        "submit job.yaml",
        "submit job.yaml --detach",
        "submit job.yaml --set training.rounds=2 --run-id trial-1",
        "submit --resume 3fa1 --backend sagemaker --set compute.instance_type=ml.p4d.24xlarge",
    ),
)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(dir_okay=False))
@overrides_option
@click.option("--run-id", metavar="ID", help="Name the run; submitting the same job twice starts it once.")
@click.option("--resume", metavar="RUN", help="Continue this run from its last checkpoint, instead of a job file.")
@click.option("--backend", metavar="NAME", help="With --resume: continue on this backend; --set names the new machine.")
@click.option("--storage", metavar="URL", help="With --resume: where to look for the run.")
@click.option("--detach", is_flag=True, help="Return when the run has started.")
@output_options
def command(
    *,
    file: str | None,
    overrides: tuple[str, ...],
    run_id: str | None,
    resume: str | None,
    backend: str | None,
    storage: str | None,
    detach: bool,
    as_json: bool,
) -> None:
    """Start a run and follow it to its end: round, step, losses, images/s, time left.

    --resume continues an interrupted run, if you like on another backend: a running attempt first saves and stops.
    Record, rounds and checkpoints stay where they are, and the training result is the same.

    Ctrl-C detaches: the run continues, the command prints how to follow it again, and exits with 130, so that a
    shell's "&&" stops. Exit code 7 unless the run ends as done.

    JSON: {run_id, storage, backend, outcome, rounds, seconds, usd}, at the end of the run, or at once with --detach,
    with outcome null.
    """
    from mtl_cloud.clock import Clock

    clock = Clock()
    if resume is not None and file is None and run_id is None:
        run, launcher = _resume(resume, backend, storage, overrides, clock, quiet=as_json)
    elif file is not None and resume is None and backend is None and storage is None:
        run, launcher = _start(file, overrides, run_id, clock, quiet=as_json)
    else:
        raise UsageError(
            "submit takes a FILE, or --resume RUN with --backend and --storage", hint="mtl-cloud submit --help"
        )
    if not detach:
        _follow(run, launcher, clock, quiet=as_json)
    elif as_json:
        _print_result(run)
    else:
        click.echo(f"follow it with: mtl-cloud status --follow {run.run_id}")


def _start(
    file: str, overrides: tuple[str, ...], run_id: str | None, clock: Clock, *, quiet: bool
) -> tuple[RunRecord, Launcher]:
    from mtl_cloud.jobspec.load import job_to_json, load_job
    from mtl_cloud.launch import get_launcher
    from mtl_cloud.launch.submit import submit_run
    from mtl_cloud.planning.gather import launch_facts
    from mtl_cloud.planning.plan import plan_run
    from mtl_cloud.runs.find import new_run_id, remember_storage
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.storage import open_storage

    loaded = load_job(file, overrides=overrides)
    job, now = loaded.job, clock.now()
    plan = plan_run(job, launch_facts(job, now), run_id=run_id or new_run_id(job.name), now=now)
    launcher, storage = get_launcher(plan.backend), open_storage(plan.storage)
    if not quiet:
        _announce(plan)
    submit_run(plan, spec_yaml=loaded.source, spec_json=job_to_json(job), storage=storage, launcher=launcher)
    remember_storage(storage.url)
    return RunRecord(storage, plan.run_id), launcher


def _resume(
    name: str, backend: str | None, storage: str | None, overrides: tuple[str, ...], clock: Clock, *, quiet: bool
) -> tuple[RunRecord, Launcher]:
    from mtl_cloud.launch import get_launcher
    from mtl_cloud.launch.resume import moved_job, replan, resume_run
    from mtl_cloud.planning.gather import launch_facts
    from mtl_cloud.runs.find import remember_storage

    run = open_run(name, storage)
    job = moved_job(run, backend=backend, overrides=overrides)
    now = clock.now()
    plan = replan(run, job, lambda moved: launch_facts(moved, now), now=now)
    if not quiet:
        _announce(plan)
    resume_run(run, job, plan, get_launcher=get_launcher, clock=clock)
    remember_storage(run.storage.url)
    return run, get_launcher(plan.backend)


def _announce(plan: PlanRecord) -> None:
    from mtl_cloud.planning.plan import worst_case_usd
    from mtl_cloud.report.formatting import dollars

    print_warnings(plan.warnings)
    most = worst_case_usd(plan)
    cost = "" if most is None else f", at most {dollars(most)}"
    click.echo(f"run {click.style(plan.run_id, bold=True)} on {plan.backend}{cost}, record in {plan.storage}")


def _follow(run: RunRecord, launcher: Launcher, clock: Clock, *, quiet: bool) -> None:
    from mtl_cloud.cli.attach import attach, require_done
    from mtl_cloud.cli.live_view import SilentView, open_view

    result = attach(run, SilentView() if quiet else open_view(run.plan()), clock, launcher)
    if quiet:
        _print_result(run)
    require_done(run.run_id, result)


def _print_result(run: RunRecord) -> None:
    plan, result = run.plan(), run.result()
    print_json(
        {
            "run_id": run.run_id,
            "storage": plan.storage,
            "backend": plan.backend,
            "outcome": result.outcome if result else None,
            "rounds": result.rounds if result else 0,
            "seconds": result.seconds if result else None,
            "usd": result.usd if result else None,
        }
    )
