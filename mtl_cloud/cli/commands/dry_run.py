"""``mtl-cloud dry-run``: rehearse a job on this machine."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mtl_cloud.cli.common import examples, output_options, overrides_option
from mtl_cloud.cli.output import print_json
from mtl_cloud.errors import RunFailedError, UsageError

if TYPE_CHECKING:
    from mtl_cloud.dry_run import Evidence, MemoryNeed, Row
    from mtl_cloud.jobspec.job import JobSpec
    from mtl_cloud.runs.plan_facts import Estimate

_COLOURS = {"ok": "green", "failed": "red", "not checked": "yellow", "not reached": "yellow"}


@click.command(
    "dry-run", epilog=examples("dry-run job.yaml", "dry-run job.yaml --data embedded --s3", "dry-run job.yaml --json")
)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@overrides_option
@click.option(
    "--data", metavar="DIR", help="Local copy of the job's dataset; or 'embedded', to use the built-in digits."
)
@click.option("--s3", is_flag=True, help="Store the run record in a local S3 server (extra dev), not in a folder.")
@click.option("--storage", metavar="DIR", help="Store and keep the run record here. Default: a temporary folder.")
@click.option("--image", metavar="REF", help="Image to run; default this version's own.")
@click.option("--memory", metavar="SIZE", help="Memory limit of the container, e.g. 8g.")
@output_options
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    data: str | None,
    s3: bool,
    storage: str | None,
    image: str | None,
    memory: str | None,
    as_json: bool,
) -> int:
    """Rehearse any job on this machine: its image, its data, two tiny rounds.

    The container is killed once and resumes; it gets a spot notice (SIGTERM, as from SageMaker) and resumes; the result
    is compared, bit for bit, with an undisturbed run. The AWS requests are validated against AWS's model of the API.
    Then a table shows the checks. Without a GPU, batch and image size are reduced, and the memory and work of the
    whole job are computed instead of measured.

    Exit code 0 if all checks pass, 7 otherwise.

    JSON: {job, backend, ok, checks: [{check, state, detail}], memory: {memory_gib, gpu_memory_gib}, estimates: [...] as
    `plan` has them}.
    """
    from mtl_cloud.dry_run import check_evidence, memory_need
    from mtl_cloud.jobspec.load import load_job
    from mtl_cloud.planning.plan import gather_facts, priced_estimates

    job = load_job(file, overrides=overrides).job
    facts = gather_facts(job)
    with ExitStack() as stack:
        place = _place(stack, storage, s3=s3)
        sliced = _sliced(job, image=image, storage=place, data=data)
        evidence = _rehearse(stack, job, sliced, memory, quiet=as_json)
        need = memory_need(job, facts, evidence.probe) if evidence.probe else None
        rows = check_evidence(job, evidence, need)
    estimates = priced_estimates(job, facts)
    if as_json:
        print_json(_document(job, rows, need, estimates))
    else:
        _print(rows, estimates)
    return 0 if all(row.is_good for row in rows) else RunFailedError.exit_code


def _place(stack: ExitStack, storage: str | None, *, s3: bool) -> str:
    """The URL of the storage for the rehearsal's records."""
    if s3 and storage:
        raise UsageError("--s3 and --storage exclude each other", hint="use one of them")
    if s3:
        from mtl_cloud.dry_run.fake_cloud import local_s3

        return stack.enter_context(local_s3())
    if storage:
        return str(Path(storage).absolute())
    return stack.enter_context(TemporaryDirectory(prefix="mtl-cloud-dry-run-"))


def _sliced(job: JobSpec, *, image: str | None, storage: str, data: str | None) -> JobSpec:
    from mtl_cloud.dry_run import slice_job
    from mtl_cloud.supervise.host_metrics import gpu_count

    if data not in {None, "embedded"} and len(job.datasets) > 1:
        raise UsageError(f"--data {data}: the job has several datasets", hint="--data embedded replaces them all")
    here = min(job.compute.gpu_count, gpu_count())
    stands_in = data if data in {None, "embedded"} else str(Path(str(data)).absolute())
    return slice_job(job, image=image, storage=storage, gpus=here, data=stands_in)


def _rehearse(stack: ExitStack, job: JobSpec, sliced: JobSpec, memory: str | None, *, quiet: bool) -> Evidence:
    from mtl_cloud.clock import Clock
    from mtl_cloud.container.engine import Engine
    from mtl_cloud.dry_run import Rehearsal
    from mtl_cloud.dry_run.fake_cloud import stand_in
    from mtl_cloud.launch.docker import DockerLauncher
    from mtl_cloud.planning.plan import gather_facts, plan_run
    from mtl_cloud.runs.find import new_run_id
    from mtl_cloud.runs.supervisor_options import SupervisorOptions

    engine = Engine.find(os.environ)
    around = stack.enter_context(stand_in(job.compute.backend))
    settings = SupervisorOptions(poll_s=0.2, first_s=0.1, last_s=0.2, tick_s=0.05)  # some minutes are watched closely
    launcher = DockerLauncher(
        engine=engine, memory=memory, options=around.options, flags=around.flags, settings=settings
    )
    plan = plan_run(sliced, gather_facts(sliced), run_id=new_run_id("dry-run"), now=Clock().now())
    say = _silent if quiet else _say
    return Rehearsal(
        whole=job, job=sliced, plan=plan, launcher=launcher, engine=engine, notice=around.notice, say=say
    ).run()


def _say(text: str) -> None:
    click.echo(f"{click.style('dry run:', dim=True)} {text}", err=True)


def _silent(_text: str) -> None: ...


def _document(job: JobSpec, rows: list[Row], need: MemoryNeed | None, estimates: list[Estimate]) -> dict[str, Any]:
    return {
        "job": job.name,
        "backend": job.compute.backend,
        "ok": all(row.is_good for row in rows),
        "checks": [asdict(row) for row in rows],
        "memory": asdict(need) if need else None,
        "estimates": [asdict(known) for known in estimates],
    }


def _print(rows: list[Row], estimates: list[Estimate]) -> None:
    from mtl_cloud.cli.plan_view import print_estimates

    width = max(len(row.check) for row in rows)
    for row in rows:
        state = click.style(row.state.ljust(11), fg=_COLOURS[row.state])
        click.echo(f"{row.check.ljust(width)}  {state}  {row.detail}")
    if estimates:
        print_estimates(estimates)
