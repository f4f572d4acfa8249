"""Claims and results: the writes that only the owner of a run may make, with what a refused process is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from narrowing import result_of
from run_harness import START, make_run

from mtl_cloud.errors import AlreadyExistsError, RunTakenOverError
from mtl_cloud.runs.lifecycle import cancel_message, claim_attempt, end_as_cancelled, finish_run
from mtl_cloud.runs.paths import RunPaths
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, CancelRecord, ExitRecord, Outcome, PlanRecord, ResultRecord
from mtl_cloud.storage import MemoryStorage

LATER = START + timedelta(hours=1)
SPEC = b'{"compute": {"max_restarts": 3}}'


@pytest.fixture
def run() -> RunRecord:
    """A run on EC2 at 36 dollars an hour."""
    return make_run(MemoryStorage("fence"), backend="ec2", usd_per_hour=36.0)


def end(run: RunRecord, number: int, seconds: float) -> None:
    record = ExitRecord(ended_at="", outcome="machine_error", exit_code=-9, message="SIGKILL", seconds=seconds)
    run.write_exit(number, record)


class Interposed(MemoryStorage):
    """Runs ``between`` once, just before the object whose key ends in ``name`` is created."""

    def __init__(self, name: str) -> None:
        super().__init__("interposed")
        self._name = name
        self.between: Callable[[], object] = lambda: None

    def create(self, key: str, data: bytes) -> None:
        if key.endswith(self._name):
            between, self.between = self.between, lambda: None
            between()
        super().create(key, data)


# --- claims ---


def test_a_claim_records_the_process_its_machine_and_the_plan_that_it_runs_under(run: RunRecord) -> None:
    claim_attempt(run, run.plan(), 1, now=START, device="2 x A100")
    (claim,) = run.attempts()
    assert len(claim.nonce) == 32
    assert claim == AttemptRecord(
        number=1,
        started_at="2026-01-01T00:00:00+00:00",
        host=socket.gethostname(),
        pid=os.getpid(),
        backend="ec2",
        device="2 x A100",
        usd_per_hour=36.0,
        nonce=claim.nonce,
    )


def test_no_two_claims_are_alike(run: RunRecord) -> None:
    """Else two processes with one id, on machines of one name, would each take the other's claim for its own."""
    claim_attempt(run, run.plan(), 1, now=START)
    with pytest.raises(AlreadyExistsError):
        claim_attempt(run, run.plan(), 1, now=START)


def test_a_number_that_is_taken_is_refused_with_its_owner(run: RunRecord) -> None:
    for number, host in ((1, "i-1"), (2, "i-2")):
        started = f"2026-01-01T0{number}:00:00+00:00"
        run.claim(AttemptRecord(number=number, started_at=started, host=host, pid=10 * number, backend="ec2"))
    with pytest.raises(AlreadyExistsError) as caught:
        claim_attempt(run, run.plan(), 2, now=START)
    assert str(caught.value) == "digits-1: attempt 2 was claimed by process 20 on i-2 at 2026-01-01T02:00:00+00:00"
    assert caught.value.hint == "that attempt is still running; no action needed"


def test_a_replaced_attempt_is_told_to_stop(run: RunRecord) -> None:
    claim_attempt(run, run.plan(), 1, now=START)
    run.require_owner(1)
    claim_attempt(run, run.plan(), 2, now=LATER)
    run.require_owner(2)
    with pytest.raises(RunTakenOverError) as caught:
        run.require_owner(1)
    by = f"attempt 2, which started at 2026-01-01T01:00:00+00:00 on {socket.gethostname()}"
    assert str(caught.value) == f"digits-1: attempt 1 was replaced by {by}"
    assert caught.value.hint == "this process must stop; the run continues there"


# --- the result ---


def test_the_result_sums_up_all_attempts_rounded_to_what_is_shown(run: RunRecord) -> None:
    claim_attempt(run, run.plan(), 1, now=START)
    end(run, 1, 10.00044)
    claim_attempt(run, run.plan(), 2, now=LATER)
    end(run, 2, 0.00051)
    finish_run(run, 2, Outcome.MACHINE_ERROR, "SIGKILL", now=LATER)
    assert run.result() == ResultRecord(
        ended_at="2026-01-01T01:00:00+00:00",
        outcome="machine_error",
        message="SIGKILL",
        attempts=2,
        rounds=0,
        seconds=10.001,
        usd=0.1,
    )


def test_dollars_are_rounded_to_a_hundredth_of_a_cent() -> None:
    run = make_run(MemoryStorage("fence"), backend="ec2", usd_per_hour=0.5)
    claim_attempt(run, run.plan(), 1, now=START)
    end(run, 1, 1.0)
    finish_run(run, 1, Outcome.DONE, "", now=LATER)
    assert result_of(run).usd == 0.0001  # of 0.000138...


def test_a_run_without_a_price_has_no_dollars() -> None:
    run = make_run(MemoryStorage("fence"))
    claim_attempt(run, run.plan(), 1, now=START)
    end(run, 1, 10)
    finish_run(run, 1, Outcome.DONE, "all rounds are done", now=LATER)
    assert (result_of(run).seconds, result_of(run).usd) == (10, None)


def test_of_two_attempts_that_end_a_run_at_once_the_second_is_told_of_the_first() -> None:
    """The older one has asked who owns the run, and is replaced before it writes."""
    storage = Interposed("result.json")
    run = make_run(storage)
    claim_attempt(run, run.plan(), 1, now=START)

    def replaced() -> None:
        claim_attempt(run, run.plan(), 2, now=LATER)
        finish_run(run, 2, Outcome.CANCELLED, "cancelled by ann", now=LATER)

    storage.between = replaced
    with pytest.raises(AlreadyExistsError) as caught:
        finish_run(run, 1, Outcome.DONE, "all rounds are done", now=START)
    assert str(caught.value) == "digits-1: attempt 2 has ended the run (cancelled) before attempt 1 did"
    assert caught.value.hint == "its result stands; no action needed"
    assert (result_of(run).attempts, result_of(run).message) == (2, "cancelled by ann")


def test_a_replaced_attempt_ends_no_run(run: RunRecord) -> None:
    claim_attempt(run, run.plan(), 1, now=START)
    claim_attempt(run, run.plan(), 2, now=LATER)
    with pytest.raises(RunTakenOverError):
        finish_run(run, 1, Outcome.DONE, "all rounds are done", now=LATER)
    assert run.result() is None


# --- cancelling a run that has no supervisor left ---

CANCEL = CancelRecord(at="2026-01-01T00:30:00+00:00", by="ann", reason="wrong data")


def test_a_cancellation_is_told_with_its_reason_where_there_is_one() -> None:
    assert cancel_message(CANCEL) == "cancelled by ann: wrong data"
    assert cancel_message(replace(CANCEL, reason="")) == "cancelled by ann"


@pytest.mark.parametrize("attempts", [0, 2])
def test_a_run_without_a_supervisor_is_ended_under_the_next_number(run: RunRecord, attempts: int) -> None:
    for number in range(1, attempts + 1):
        claim_attempt(run, run.plan(), number, now=START)
        end(run, number, 10)
    end_as_cancelled(run, CANCEL, now=LATER)
    message = "cancelled by ann: wrong data; the trainer was not started"
    claim = run.attempts()[-1]
    assert (claim.number, claim.started_at, claim.backend) == (attempts + 1, LATER.isoformat(), "ec2")
    assert run.exit(attempts + 1) == ExitRecord(
        ended_at=LATER.isoformat(), outcome="cancelled", exit_code=None, message=message, seconds=0.0
    )
    assert run.result() == ResultRecord(
        ended_at=LATER.isoformat(),
        outcome="cancelled",
        message=message,
        attempts=attempts + 1,
        rounds=0,
        seconds=10.0 * attempts,
        usd=0.1 * attempts,
    )


def test_a_supervisor_that_claims_first_is_not_overruled() -> None:
    storage = Interposed(RunPaths("digits-1").attempt(1))
    run = make_run(storage)
    storage.between = lambda: claim_attempt(run, run.plan(), 1, now=START)
    with pytest.raises(AlreadyExistsError, match="attempt 1 was claimed by process"):
        end_as_cancelled(run, CANCEL, now=LATER)
    assert (run.owner(), run.exit(1), run.result()) == (1, None, None)


# --- what an owner reads ---


def test_a_moved_run_has_the_plan_and_job_of_the_newest_move_and_keeps_the_first_job(run: RunRecord) -> None:
    first, spec = run.plan(), run.spec_json()
    plans: list[PlanRecord] = [replace(first, backend=backend) for backend in ("local", "sagemaker")]
    for plan in plans:
        run.move(plan, spec_json=SPEC)
        assert (run.plan(), run.spec_json()) == (plan, SPEC)
    assert (run.moves(), run.first_spec_json()) == (2, spec)


def test_what_unfinished_writes_of_this_run_left_is_swept_and_counted() -> None:
    swept: list[tuple[str, datetime]] = []

    class Swept(MemoryStorage):
        def sweep(self, prefix: str, before: datetime) -> int:
            swept.append((prefix, before))
            return 3

    assert RunRecord(Swept(), "digits-1").sweep(START) == 3
    assert swept == [("runs/digits-1/", START)]


def test_a_damaged_boot_record_is_passed_over_with_a_warning(run: RunRecord, caplog: pytest.LogCaptureFixture) -> None:
    run.storage.write(run.paths.boot("i-1"), b"{")
    assert run.boots() == []
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "skipping a boot record: memory://fence/runs/digits-1/boots/i-1.json: not JSON"
    )
