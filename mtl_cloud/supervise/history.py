"""What the run record says of a run's attempts so far."""

from __future__ import annotations

from datetime import datetime

from mtl_cloud.records import AttemptRecord, Outcome
from mtl_cloud.run_record import RunRecord
from mtl_cloud.supervise.classify import Life

__all__ = ["lives", "spent_s", "spent_usd"]


def lives(run: RunRecord) -> list[Life]:
    """The run's attempts, oldest first."""
    committed: dict[int, int] = {}
    for checkpoint in run.checkpoints():
        committed[checkpoint.attempt] = max(checkpoint.step, committed.get(checkpoint.attempt, 0))
    return [_life(run, attempt.number, committed.get(attempt.number, 0)) for attempt in run.attempts()]


def _life(run: RunRecord, attempt: int, committed_step: int) -> Life:
    end, beat = run.exit(attempt), run.heartbeat(attempt)
    step = beat.progress.get("step") if beat else None
    return Life(
        attempt=attempt,
        outcome=Outcome(end.outcome) if end else Outcome.INTERRUPTED,
        message=end.message if end else "it vanished",
        reached_step=step if isinstance(step, int) else 0,
        committed_step=committed_step,
    )


def spent_s(run: RunRecord) -> float:
    """Seconds that all attempts took together; one that vanished counts up to its last heartbeat."""
    return sum(_seconds(run, attempt) for attempt in run.attempts())


def spent_usd(run: RunRecord) -> float | None:
    """Dollars of these seconds, each attempt's at its own price; None when none of them has one."""
    prices = [(attempt, attempt.usd_per_hour) for attempt in run.attempts()]
    costs = [_seconds(run, attempt) / 3600 * price for attempt, price in prices if price is not None]
    return round(sum(costs), 4) if costs else None


def _seconds(run: RunRecord, attempt: AttemptRecord) -> float:
    end = run.exit(attempt.number)
    if end is not None:
        return end.seconds
    beat = run.heartbeat(attempt.number)
    if beat is None:
        return 0.0
    return (datetime.fromisoformat(beat.at) - datetime.fromisoformat(attempt.started_at)).total_seconds()
