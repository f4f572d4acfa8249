"""From a plan to a run that runs: write the record first, then tell the backend. Safe to repeat at any point."""

from __future__ import annotations

from dataclasses import replace

from mtl_cloud.errors import AlreadyExistsError, LaunchError
from mtl_cloud.launch.base import Launcher, RunHandle
from mtl_cloud.records import PlanRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.storage import Storage

__all__ = ["submit_run", "with_requests"]


def with_requests(plan: PlanRecord, launcher: Launcher) -> PlanRecord:
    """The plan, with the exact requests that its backend will be sent. Pure."""
    return replace(plan, requests=launcher.prepare(plan).request)


def submit_run(
    plan: PlanRecord, *, spec_yaml: bytes, spec_json: bytes, storage: Storage, launcher: Launcher
) -> RunHandle:
    """Make the run exist and run.

    A run that exists is adopted: under the plan that it was created with, if its job is the same.

    Raises
    ------
    LaunchError
        The run id belongs to another job, or the backend refuses.
    """
    run = RunRecord(storage, plan.run_id)
    try:
        run.create(with_requests(plan, launcher), spec_yaml=spec_yaml, spec_json=spec_json)
    except AlreadyExistsError as error:
        if not run.exists() or run.spec_json() != spec_json:
            raise LaunchError(
                f"{plan.run_id}: exists in {storage.url}, with another job file",
                hint="submit under a new run id",
            ) from error
    return launcher.submit(launcher.prepare(run.plan()))
