"""Start and cancel runs on any backend: first the record, then the backend. Every step is safe to repeat."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, LaunchError
from mtl_cloud.launch import find_launcher
from mtl_cloud.launch.base import BackendState, Launcher, RunHandle
from mtl_cloud.runs.lifecycle import end_as_cancelled
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CancelRecord, PlanRecord
from mtl_cloud.storage import Storage

__all__ = ["cancel_run", "release_run", "submit_run", "with_requests", "with_requests_if_known"]

_CANCEL_GRACE_S = 300.0
"""The supervisor sees a request within seconds, and gives the trainer two minutes to save."""
_LOOK_S = 5.0


def with_requests(plan: PlanRecord, launcher: Launcher) -> PlanRecord:
    """The plan with the exact requests to its backend. Pure."""
    return replace(plan, requests=launcher.prepare(plan).request)


def with_requests_if_known(plan: PlanRecord) -> tuple[PlanRecord, LaunchError | None]:
    """The plan with its exact requests; as it was, with the reason, where the account is not known."""
    launcher = find_launcher(plan.backend)
    if launcher is None:
        return plan, None
    try:
        return with_requests(plan, launcher), None
    except LaunchError as error:
        return plan, error


def submit_run(
    plan: PlanRecord, *, spec_yaml: bytes, spec_json: bytes, storage: Storage, launcher: Launcher
) -> RunHandle:
    """Create the run's record and start the run.

    An existing run of the same job is adopted, under the plan that it was created with.

    Raises
    ------
    LaunchError
        The run id belongs to another job, or the backend refused.
    """
    run = RunRecord(storage, plan.run_id)
    try:
        run.create(with_requests(plan, launcher), spec_yaml=spec_yaml, spec_json=spec_json)
    except AlreadyExistsError as error:
        if not run.exists() or run.first_spec_json() != spec_json:
            raise LaunchError(
                f"{plan.run_id}: exists in {storage.url}, with another job file",
                hint="submit under a new run id",
            ) from error
    return launcher.submit(launcher.prepare(run.plan()))


def cancel_run(run: RunRecord, request: CancelRecord, *, launcher: Launcher) -> None:
    """Ask the run's supervisor to save and stop.

    If the backend runs nothing any more, end the run here, under the number of the next attempt, so that a supervisor
    which comes back later finds itself replaced. A run that is over is not changed.
    """
    run.request_cancel(request)
    if run.result() is None and launcher.describe(RunHandle.of(run.plan())) is BackendState.ENDED:
        with suppress(AlreadyExistsError):  # a supervisor has claimed that attempt, and will see the request itself
            end_as_cancelled(run, request, now=datetime.now(UTC))


def release_run(run: RunRecord, request: CancelRecord, *, launcher: Launcher, clock: Clock) -> None:
    """Cancel a run on a rented machine, and return when its backend confirms that all resources are removed.

    A running machine has time to save and to end the run itself; a pending one is given up at once. Raises
    ``LaunchError`` when something cannot be removed; repeating the call continues the removal.
    """
    run.request_cancel(request)
    handle, end = RunHandle.of(run.plan()), clock.monotonic() + _CANCEL_GRACE_S
    while run.result() is None and launcher.describe(handle) is BackendState.RUNNING and clock.monotonic() < end:
        clock.sleep(_LOOK_S)
    launcher.stop(handle)
    cancel_run(run, request, launcher=launcher)
