"""Submitting: the record first, then the backend; repeating it is safe, and another job is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_harness import PLAN, make_run

from mtl_cloud.errors import LaunchError, RunTakenOverError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.submit import cancel_run, submit_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, CancelRecord, Outcome, PlanRecord
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.testing.launcher import MemoryLauncher

LATER = "2026-02-02T00:00:00+00:00"


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage("submit")


@pytest.fixture
def launcher() -> MemoryLauncher:
    return MemoryLauncher()


def _submit(
    storage: MemoryStorage, launcher: MemoryLauncher, plan: PlanRecord = PLAN, spec_json: bytes = b"{}"
) -> RunHandle:
    return submit_run(plan, spec_yaml=b"name: digits\n", spec_json=spec_json, storage=storage, launcher=launcher)


def test_the_record_holds_job_plan_and_requests(storage: MemoryStorage, launcher: MemoryLauncher) -> None:
    assert _submit(storage, launcher) == RunHandle.of(PLAN)
    run = RunRecord(storage, PLAN.run_id)
    assert run.plan() == replace(PLAN, requests={"command": [*PLAN.command]})
    assert (run.spec_yaml(), run.spec_json()) == (b"name: digits\n", b"{}")


def test_the_same_job_is_adopted_under_its_first_plan(storage: MemoryStorage, launcher: MemoryLauncher) -> None:
    _submit(storage, launcher)
    _submit(storage, launcher, plan=replace(PLAN, created_at=LATER))
    assert RunRecord(storage, PLAN.run_id).plan().created_at == PLAN.created_at
    assert len(launcher.submissions) == 1


def test_another_job_under_the_same_id_is_refused(storage: MemoryStorage, launcher: MemoryLauncher) -> None:
    _submit(storage, launcher)
    with pytest.raises(LaunchError, match=f"{PLAN.run_id}: exists in .*with another job"):
        _submit(storage, launcher, spec_json=b'{"seed": 1}')


def test_a_submit_that_died_before_the_plan_was_written_can_be_repeated(
    storage: MemoryStorage, launcher: MemoryLauncher
) -> None:
    run = RunRecord(storage, PLAN.run_id)
    storage.create(run.paths.spec_yaml, b"name: digits\n")
    _submit(storage, launcher)
    assert run.exists()
    assert len(launcher.submissions) == 1


CANCEL = CancelRecord(at=LATER, by="ann", reason="wrong data")


def _submitted(storage: MemoryStorage, launcher: MemoryLauncher) -> RunRecord:
    run = make_run(storage, backend=launcher.backend)
    launcher.submit(launcher.prepare(run.plan()))
    return run


def test_a_living_run_is_left_to_hear_the_wish_itself(storage: MemoryStorage) -> None:
    launcher = MemoryLauncher([BackendState.PENDING])
    run = _submitted(storage, launcher)
    cancel_run(run, CANCEL, launcher=launcher)
    assert run.cancel_request() == CANCEL
    assert run.result() is None


def test_a_dead_run_is_ended_under_the_next_attempts_number(storage: MemoryStorage) -> None:
    launcher = MemoryLauncher([BackendState.ENDED])
    run = _submitted(storage, launcher)
    run.claim(AttemptRecord(number=1, started_at=LATER, host="gone", pid=1, backend="memory"))
    for _ in range(2):
        cancel_run(run, CANCEL, launcher=launcher)
    result = run.result()
    assert result is not None
    assert (result.outcome, result.attempts) == (Outcome.CANCELLED, 2)
    assert result.message == "cancelled by ann: wrong data; the trainer was not started"
    with pytest.raises(RunTakenOverError):
        run.require_owner(1)
