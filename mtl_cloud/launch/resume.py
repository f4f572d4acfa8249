"""Resume a run, on the same backend or another one: same record, same training, another machine.

A move adds a plan to the run's record. The old backend stops first, so that two machines are never paid for the same
work; the attempts' fence keeps a machine that does not stop from committing anything more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mtl_cloud.clock import Clock
from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_from_json, job_to_json, parse_job
from mtl_cloud.launch.base import BackendState, Launcher, RunHandle
from mtl_cloud.planning.plan import Facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["changed_training", "moved_job", "replan", "resume_run"]

_LIMITS = {"max_hours", "budget_usd", "max_restarts"}
"""Fields of ``compute`` that are kept on another backend."""
_PLACES = {"name", "storage", "tags", "env", "compute", "checkpoint"}
"""Sections that do not affect training results."""
_LEAVE_S = 600.0
_LOOK_S = 2.0


def moved_job(run: RunRecord, *, backend: str | None, overrides: Sequence[str] = ()) -> JobSpec:
    """The run's job on ``backend`` (None: the same), with ``field=value`` overrides.

    Another backend gets a new ``compute`` section, which keeps only the limits of the old one.

    Raises ``SpecError`` with every mistake of the resulting job.
    """
    job = job_from_json(run.spec_json(), source=run.paths.spec_json)
    document = job.model_dump(mode="json", exclude_defaults=True)  # or defaults would count as set explicitly
    if backend is not None and backend != job.compute.backend:
        limits = job.compute.model_dump(mode="json", include=_LIMITS, exclude_none=True)
        document["compute"] = {"backend": backend, **limits}
    text = json.dumps(document, indent=1).encode()  # JSON is YAML
    return parse_job(text, source=f"{run.run_id}/spec.json", base=Path("/"), overrides=overrides).job


def replan(run: RunRecord, job: JobSpec, gather: Callable[[JobSpec], Facts], *, now: datetime) -> PlanRecord:
    """The plan to resume under: the current one if the job is unchanged, else a new one from new facts."""
    if job_to_json(job) == run.spec_json():
        return run.plan()
    return plan_run(job, gather(job), run_id=run.run_id, now=now)


def resume_run(
    run: RunRecord, job: JobSpec, plan: PlanRecord, *, get_launcher: Callable[[str], Launcher], clock: Clock
) -> RunHandle:
    """Resume the run under ``plan``, the plan of ``job``. Safe to repeat at every point.

    Raises
    ------
    LaunchError
        The run is over or being cancelled, the job would train differently, the old backend does not stop, or the new
        one refuses.
    """
    _require_open(run)
    launcher = get_launcher(plan.backend)
    spec_json = job_to_json(job)
    if spec_json != run.spec_json():
        _require_same_training(run, job)
        submission = launcher.prepare(plan)  # before anything is stopped
        _leave(run, get_launcher, clock)
        run.move(replace(plan, requests=submission.request), spec_json=spec_json)
    return launcher.submit(launcher.prepare(run.plan()))


def changed_training(old: JobSpec, new: JobSpec) -> list[str]:
    """Fields that make two jobs train differently. Locations of inputs and loader workers do not count."""
    return sorted(_differences(_training_inputs(old), _training_inputs(new)))


def _training_inputs(job: JobSpec) -> Any:
    document = job.model_dump(mode="json", exclude=_PLACES)
    datasets = [{**dataset.model_dump(mode="json"), "uri": None} for dataset in job.datasets]
    model = {**document["model"], "pretrained": None}
    return {"dataset": datasets, "model": model, "training": {**document["training"], "loader_workers": None}}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path


def _require_open(run: RunRecord) -> None:
    result = run.result()
    if result is not None:
        raise LaunchError(f"{run.run_id}: is over ({result.outcome}) and cannot be resumed", hint="submit the job anew")
    if run.cancel_request() is not None:
        raise LaunchError(f"{run.run_id}: is being cancelled and cannot be resumed", hint="submit the job anew")


def _require_same_training(run: RunRecord, job: JobSpec) -> None:
    fields = changed_training(job_from_json(run.spec_json(), source=run.paths.spec_json), job)
    if fields:
        raise LaunchError(
            f"{run.run_id}: must resume the same training, but the job differs in {', '.join(fields)}",
            hint="submit it as a new run",
        )


def _leave(run: RunRecord, get_launcher: Callable[[str], Launcher], clock: Clock) -> None:
    """Stop the attempt on the current backend, after the trainer has saved, and wait until it has stopped."""
    handle = RunHandle.of(run.plan())
    launcher = get_launcher(handle.backend)
    if not _runs(launcher, handle):
        return
    launcher.stop(handle)
    end = clock.monotonic() + _LEAVE_S
    while _runs(launcher, handle):
        if clock.monotonic() > end:
            raise LaunchError(f"{run.run_id}: is still running on {handle.backend} after {_LEAVE_S / 60:g} minutes")
        clock.sleep(_LOOK_S)


def _runs(launcher: Launcher, handle: RunHandle) -> bool:
    try:
        return launcher.describe(handle) is not BackendState.ENDED
    except CloudError:
        raise
    except LaunchError:  # recorded, but never submitted
        return False
