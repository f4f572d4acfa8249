"""The state of a run in one line: state, rounds, headline metrics, machine time and dollars."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mtl_cloud.runs.attempts import LOST_BY_CLOCK_S, AttemptState, bill_of_attempts, read_attempts
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import BestRound, Outcome, RoundRecord
from mtl_cloud.tasks import HEADLINE

__all__ = ["RunSummary", "summarize"]


@dataclass(frozen=True)
class RunSummary:
    """One line about a run."""

    run_id: str
    name: str
    backend: str
    storage: str
    created_at: str
    state: str
    """queued | running | stopping | lost, or, when it is over, an ``Outcome``."""
    attempt: int | None
    """The present or last one; None before the first."""
    round: int
    """Rounds completed, of ``rounds``."""
    rounds: int
    metrics: dict[str, float | None]
    """task -> its headline metric (``tasks.HEADLINE``) after the last completed round."""
    best: BestRound | None
    """The round whose checkpoint is kept as the best; None without ``checkpoint.keep_best`` or a value yet."""
    started_at: str | None
    seconds: float
    """Machine seconds of all attempts so far, as ``attempts.bill_of`` counts them."""
    usd: float | None
    """Dollars of these seconds; None where nothing is rented, or a price is not known."""


def summarize(run: RunRecord, now: datetime, *, lost_after_s: float = LOST_BY_CLOCK_S) -> RunSummary:
    """The state of ``run`` at ``now``: lost when its attempt has not ended and stopped reporting (see ``attempts``)."""
    plan, result, attempts, rounds = run.plan(), run.result(), read_attempts(run), run.rounds()
    bill = None if result else bill_of_attempts(plan, run.boots(), attempts, now=now, lost_after_s=lost_after_s)
    return RunSummary(
        run_id=run.run_id,
        name=plan.name,
        backend=plan.backend,
        storage=run.storage.url,
        created_at=plan.created_at,
        state=result.outcome if result else _state(run, attempts, now, lost_after_s),
        attempt=attempts[-1].number if attempts else None,
        round=rounds[-1].round if rounds else 0,
        rounds=plan.rounds,
        metrics=_headlines(rounds[-1]) if rounds else {},
        best=rounds[-1].best if rounds else None,
        started_at=attempts[0].claim.started_at if attempts else None,
        seconds=result.seconds if result else bill.seconds if bill else 0.0,
        usd=result.usd if result else bill.usd if bill else None,
    )


def _state(run: RunRecord, attempts: list[AttemptState], now: datetime, lost_after_s: float) -> str:
    """The state of a run without a result."""
    last = attempts[-1] if attempts else None
    if last and last.exit and not Outcome(last.exit.outcome).may_retry:
        return last.exit.outcome
    if last and last.is_lost(now, lost_after_s):
        return "lost"
    if run.cancel_request() or (last and last.heartbeat and last.heartbeat.phase == "stopping" and not last.exit):
        return "stopping"
    return "running" if last and not last.exit else "queued"


def _headlines(record: RoundRecord) -> dict[str, float | None]:
    metrics = {str(task): name for task, name in HEADLINE.items()}
    return {task: values.get(metrics[task]) for task, values in record.metrics.items() if task in metrics}
