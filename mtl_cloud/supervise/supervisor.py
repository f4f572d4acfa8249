"""The supervisor's story: claim an attempt, live it, say how it ended, decide what follows.

All that it decides from is in the run record, so a supervisor that takes over on another machine decides the same.
"""

from __future__ import annotations

import json
import os
import socket
import uuid

from mtl_cloud.errors import AlreadyExistsError
from mtl_cloud.records import AttemptRecord, ExitRecord, Outcome, PlanRecord, ResultRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.classify import Verdict, judge
from mtl_cloud.supervise.history import lives, spent_s, spent_usd
from mtl_cloud.supervise.host import device_name
from mtl_cloud.supervise.surroundings import Surroundings

__all__ = ["supervise"]


def supervise(run: RunRecord, attempt: int | None, around: Surroundings) -> Verdict:
    """Run attempt after attempt until the run is over, or must go on elsewhere.

    The first one has the number ``attempt``; None takes the next free one. A run that is over is not begun again.

    Raises
    ------
    AlreadyExistsError
        Another process has claimed the number before us, or ended the run.
    RunTakenOverError
        The run ended here, but belongs to a later attempt by now.
    """
    plan, result = run.plan(), run.result()
    if result is not None:
        return Verdict("finish", Outcome(result.outcome), result.message)
    number = attempt or (run.owner() or 0) + 1
    while True:
        _claim(run, plan, number, around)
        _live(run, plan, number, around)
        verdict = judge([life for life in lives(run) if life.attempt <= number], _max_restarts(run))
        if verdict.action == "finish":
            _finish(run, number, verdict, around)
        if verdict.action != "restart":
            return verdict
        number += 1


def _claim(run: RunRecord, plan: PlanRecord, number: int, around: Surroundings) -> None:
    record = AttemptRecord(
        number=number,
        started_at=around.now(),
        host=socket.gethostname(),
        pid=os.getpid(),
        backend=plan.backend,
        device=device_name(),
        usd_per_hour=plan.usd_per_hour,
        nonce=uuid.uuid4().hex,
    )
    try:
        run.claim(record)
    except AlreadyExistsError as error:
        owner = run.attempts()[number - 1]
        raise AlreadyExistsError(
            f"{run.run_id}: attempt {number} was claimed by process {owner.pid} on {owner.host} at {owner.started_at}",
            hint="it carries on; there is nothing to do here",
        ) from error


def _live(run: RunRecord, plan: PlanRecord, number: int, around: Surroundings) -> None:
    started = around.clock.monotonic()
    ending = Attempt(run, plan, number, around).live()
    record = ExitRecord(
        ended_at=around.now(),
        outcome=ending.outcome.value,
        exit_code=ending.exit_code,
        message=ending.message,
        seconds=round(around.clock.monotonic() - started, 3),
    )
    run.write_exit(number, record)


def _max_restarts(run: RunRecord) -> int:
    return int(json.loads(run.spec_json())["compute"]["max_restarts"])


def _finish(run: RunRecord, number: int, verdict: Verdict, around: Surroundings) -> None:
    seconds = spent_s(run)
    record = ResultRecord(
        ended_at=around.now(),
        outcome=verdict.outcome.value,
        message=verdict.message,
        attempts=number,
        rounds=len(run.rounds()),
        seconds=round(seconds, 3),
        usd=spent_usd(run),
    )
    try:
        run.write_result(record, attempt=number)
    except AlreadyExistsError as error:
        # Two attempts may end a run side by side: the older one asked who owns it just before it was replaced.
        ended = run.result() or record
        raise AlreadyExistsError(
            f"{run.run_id}: attempt {ended.attempts} has ended the run ({ended.outcome}) before attempt {number} did",
            hint="its result stands; there is nothing to do here",
        ) from error
