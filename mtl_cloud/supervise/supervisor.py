"""The supervisor's loop: claim an attempt, run it, record how it ended, decide what to do next.

It decides from the run record alone, so a supervisor that takes over on another machine decides the same.
"""

from __future__ import annotations

from mtl_cloud.runs.attempts import attempt_outcomes
from mtl_cloud.runs.lifecycle import claim_attempt, finish_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import ExitRecord, Outcome, PlanRecord
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import Decision, decide
from mtl_cloud.supervise.host_metrics import device_name

__all__ = ["supervise"]


def supervise(run: RunRecord, attempt: int | None, context: SupervisorContext) -> Decision:
    """Run attempts until the run is over or must continue on another machine.

    The first has the number ``attempt``; None takes the next free one. A run that is over is not started again.

    Raises
    ------
    AlreadyExistsError
        Another process claimed the number first, or ended the run.
    RunTakenOverError
        The run ended here, but a later attempt owns it by now.
    """
    plan, result = run.plan(), run.result()
    if result is not None:
        return Decision("finish", Outcome(result.outcome), result.message)
    number = attempt or (run.owner() or 0) + 1
    while True:
        claim_attempt(run, plan, number, now=context.clock.now(), device=device_name())
        _run_attempt(run, plan, number, context)
        decision = decide([ended for ended in attempt_outcomes(run) if ended.attempt <= number], run.max_restarts())
        if decision.action == "finish":
            finish_run(run, number, decision.outcome, decision.message, now=context.clock.now())
        if decision.action != "restart":
            return decision
        number += 1


def _run_attempt(run: RunRecord, plan: PlanRecord, number: int, context: SupervisorContext) -> None:
    started = context.clock.monotonic()
    ending = Attempt(run, plan, number, context).run_to_end()
    record = ExitRecord(
        ended_at=context.now(),
        outcome=ending.outcome.value,
        exit_code=ending.exit_code,
        message=ending.message,
        seconds=round(context.clock.monotonic() - started, 3),
    )
    run.write_exit(number, record)
