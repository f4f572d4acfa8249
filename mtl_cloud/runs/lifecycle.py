"""Claiming an attempt, and ending a run for good: the writes that only the run's owner may make."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import datetime

from mtl_cloud.errors import AlreadyExistsError
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, CancelRecord, ExitRecord, Outcome, PlanRecord, ResultRecord

__all__ = ["cancel_message", "claim_attempt", "end_as_cancelled", "finish_run"]


def claim_attempt(run: RunRecord, plan: PlanRecord, number: int, *, now: datetime, device: str | None = None) -> None:
    """Become the owner of the run, as attempt ``number`` of this process.

    Raises ``AlreadyExistsError`` when another process has claimed that number.
    """
    record = AttemptRecord(
        number=number,
        started_at=now.isoformat(),
        host=socket.gethostname(),
        pid=os.getpid(),
        backend=plan.backend,
        device=device,
        usd_per_hour=plan.usd_per_hour,
        nonce=uuid.uuid4().hex,
    )
    try:
        run.claim(record)
    except AlreadyExistsError as error:
        owner = run.attempts()[number - 1]
        raise AlreadyExistsError(
            f"{run.run_id}: attempt {number} was claimed by process {owner.pid} on {owner.host} at {owner.started_at}",
            hint="that attempt is still running; no action needed",
        ) from error


def finish_run(run: RunRecord, number: int, outcome: Outcome, message: str, *, now: datetime) -> None:
    """Write the result. Attempt ``number`` has ended, and must own the run.

    Raises
    ------
    AlreadyExistsError
        Another attempt ended the run first.
    RunTakenOverError
        A later attempt owns the run.
    """
    bill = bill_of(run)
    record = ResultRecord(
        ended_at=now.isoformat(),
        outcome=outcome.value,
        message=message,
        attempts=number,
        rounds=len(run.rounds()),
        seconds=round(bill.seconds, 3),
        usd=None if bill.usd is None else round(bill.usd, 4),
    )
    try:
        run.write_result(record, attempt=number)
    except AlreadyExistsError as error:
        # Two attempts may end a run at the same time: the older one checked ownership just before it was replaced.
        ended = run.result() or record
        raise AlreadyExistsError(
            f"{run.run_id}: attempt {ended.attempts} has ended the run ({ended.outcome}) before attempt {number} did",
            hint="its result stands; no action needed",
        ) from error


def end_as_cancelled(run: RunRecord, request: CancelRecord, *, now: datetime) -> None:
    """End a run that has no supervisor left, under the number of the next attempt.

    A supervisor that comes back to life later finds itself replaced. Raises as ``claim_attempt`` and ``finish_run``.
    """
    number = (run.owner() or 0) + 1
    claim_attempt(run, run.plan(), number, now=now)
    message = f"{cancel_message(request)}; the trainer was not started"
    record = ExitRecord(
        ended_at=now.isoformat(), outcome=Outcome.CANCELLED.value, exit_code=None, message=message, seconds=0.0
    )
    run.write_exit(number, record)
    finish_run(run, number, Outcome.CANCELLED, message, now=now)


def cancel_message(request: CancelRecord) -> str:
    reason = f": {request.reason}" if request.reason else ""
    return f"cancelled by {request.by}{reason}"
