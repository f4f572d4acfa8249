"""Submitting: the record first, then the backend; repeating it is safe, and another job is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from narrowing import result_of
from run_harness import PLAN, FakeClock, make_run

from mtl_cloud.errors import LaunchError, RunTakenOverError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.submit import cancel_run, release_run, submit_run, with_requests_if_known
from mtl_cloud.runs.lifecycle import end_as_cancelled
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


# --- rented machines -------------------------------------------------------------------------------------------------


class Rented(MemoryLauncher):
    """A machine that runs until it is stopped, and whether that was before or after the run had its result."""

    def __init__(self, run: RunRecord, *states: BackendState) -> None:
        super().__init__(states)
        self._run = run
        self.stopped_with: list[str | None] = []
        self.submit(self.prepare(run.plan()))

    def stop(self, handle: RunHandle) -> None:
        result = self._run.result()
        self.stopped_with.append(result.outcome if result else None)
        super().stop(handle)


def _cancelled_by_its_machine(run: RunRecord) -> None:
    run.claim(AttemptRecord(number=1, started_at=LATER, host="i-1", pid=1, backend="memory"))
    end_as_cancelled(run, CANCEL, now=datetime.fromisoformat(LATER))


def test_a_machine_that_runs_has_the_time_to_save_and_end_its_run(storage: MemoryStorage) -> None:
    run, clock = make_run(storage, backend="memory"), FakeClock()
    launcher = Rented(run, BackendState.RUNNING)
    clock.at(100, lambda: _cancelled_by_its_machine(run))
    release_run(run, CANCEL, launcher=launcher, clock=clock)
    assert (launcher.stopped_with, run.cancel_request()) == ([Outcome.CANCELLED], CANCEL)
    assert 100 <= clock.seconds < 120
    assert result_of(run).attempts == 2


def test_a_machine_that_does_not_answer_is_taken_away_when_its_time_is_over(storage: MemoryStorage) -> None:
    run, clock = make_run(storage, backend="memory"), FakeClock()
    launcher = Rented(run, BackendState.RUNNING)
    release_run(run, CANCEL, launcher=launcher, clock=clock)
    assert launcher.stopped_with == [None]
    assert 300 <= clock.seconds <= 305
    assert result_of(run).outcome == Outcome.CANCELLED


def test_a_machine_that_is_only_awaited_is_given_up_at_once(storage: MemoryStorage) -> None:
    run, clock = make_run(storage, backend="memory"), FakeClock()
    launcher = Rented(run, BackendState.PENDING)
    for _ in range(2):
        release_run(run, CANCEL, launcher=launcher, clock=clock)
    assert (launcher.stopped_with, clock.seconds) == ([None, Outcome.CANCELLED], 0)
    assert result_of(run).attempts == 1


def test_a_plan_of_an_unknown_backend_and_one_without_an_account_have_no_requests() -> None:
    theirs = replace(PLAN, backend="theirs")
    assert with_requests_if_known(theirs) == (theirs, None)
    nowhere = replace(PLAN, backend="ec2", compute={"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8})
    plan, error = with_requests_if_known(nowhere)
    assert plan == nowhere
    assert isinstance(error, LaunchError)
