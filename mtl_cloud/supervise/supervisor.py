"""The supervisor's story: claim an attempt, live it, say how it ended, decide what follows.

All that it decides from is in the run record, so a supervisor that takes over on another machine decides the same.
"""

from __future__ import annotations

import json

from mtl_cloud.runs.attempts import attempt_outcomes
from mtl_cloud.runs.lifecycle import claim_attempt, finish_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import ExitRecord, Outcome, PlanRecord
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import Surroundings
from mtl_cloud.supervise.failure_policy import Verdict, judge
from mtl_cloud.supervise.host_metrics import device_name

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
        claim_attempt(run, plan, number, now=around.clock.now(), device=device_name())
        _live(run, plan, number, around)
        verdict = judge([ended for ended in attempt_outcomes(run) if ended.attempt <= number], _max_restarts(run))
        if verdict.action == "finish":
            finish_run(run, number, verdict.outcome, verdict.message, now=around.clock.now())
        if verdict.action != "restart":
            return verdict
        number += 1


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
