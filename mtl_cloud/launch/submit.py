"""Starting and ending runs, for every backend: the record first, then the backend. All of it is safe to repeat."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from mtl_cloud.backends import BACKENDS
from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, LaunchError
from mtl_cloud.launch.base import BackendState, Launcher, RunHandle
from mtl_cloud.runs.lifecycle import end_as_cancelled
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CancelRecord, PlanRecord
from mtl_cloud.storage import Storage

__all__ = ["cancel_run", "release_run", "submit_run", "with_requests"]

_CANCEL_GRACE_S = 300.0
"""The supervisor hears a wish within seconds, and gives the trainer two minutes to save."""
_LOOK_S = 5.0


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
        if not run.exists() or run.first_spec_json() != spec_json:
            raise LaunchError(
                f"{plan.run_id}: exists in {storage.url}, with another job file",
                hint="submit under a new run id",
            ) from error
    return launcher.submit(launcher.prepare(run.plan()))


def cancel_run(run: RunRecord, wish: CancelRecord, *, launcher: Launcher) -> None:
    """Have a run saved and stopped by its supervisor.

    Where the backend has nobody left to hear the wish, the run is ended here and now, under the number of the next
    attempt: so, whoever comes back to life finds itself replaced. A run that is over stays as it is.
    """
    run.request_cancel(wish)
    if run.result() is None and launcher.describe(RunHandle.of(run.plan())) is BackendState.ENDED:
        with suppress(AlreadyExistsError):  # a supervisor has claimed that attempt, and will see the request itself
            end_as_cancelled(run, wish, now=datetime.now(UTC))


def release_run(run: RunRecord, wish: CancelRecord, *, launcher: Launcher, clock: Clock) -> None:
    """Cancel a run on a rented machine, and return when its backend confirms that nothing of it is left.

    A machine that runs gets the time to save and to end the run itself; one that is only being waited for is not waited
    for any longer. Raises ``LaunchError`` when something cannot be removed; repeating it goes on from there.
    """
    run.request_cancel(wish)
    handle, end = RunHandle.of(run.plan()), clock.monotonic() + _CANCEL_GRACE_S
    while run.result() is None and launcher.describe(handle) is BackendState.RUNNING and clock.monotonic() < end:
        clock.sleep(_LOOK_S)
    launcher.stop(handle)
    cancel_run(run, wish, launcher=launcher)


def with_requests_if_known(plan: PlanRecord) -> tuple[PlanRecord, LaunchError | None]:
    """The plan with its exact requests; as it was, with the reason, where the account is not known."""
    from mtl_cloud.launch import get_launcher
    from mtl_cloud.launch.submit import with_requests

    if plan.backend not in BACKENDS:
        return plan, None
    try:
        return with_requests(plan, get_launcher(plan.backend)), None
    except LaunchError as error:
        return plan, error
