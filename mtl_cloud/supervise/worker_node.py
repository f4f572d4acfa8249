"""The supervisor of a machine that does not lead: it runs its share of each attempt that the leader claims.

It writes nothing to the run record and decides nothing: what the leader claims, it serves; when the run is over, or
this machine must go, it lets go. A wish to stop that reaches any of the machines stops the trainers of all.
"""

from __future__ import annotations

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import Surroundings
from mtl_cloud.supervise.failure_policy import Verdict
from mtl_cloud.supervise.graceful_stop import first_stop

__all__ = ["accompany"]


def accompany(run: RunRecord, around: Surroundings) -> Verdict:
    """Serve the leader's attempts until the run is over, or this machine is told to go."""
    plan, served = run.plan(), 0
    while (result := run.result()) is None:
        stop = first_stop(around.watchers)
        if stop is not None:
            return Verdict("leave", Outcome.INTERRUPTED, stop.message)
        attempt = _open_attempt(run)
        if attempt > served:
            Attempt(run, plan, attempt, around).live()
            served = attempt
        else:
            around.clock.sleep(around.settings.poll_s)
    return Verdict("finish", Outcome(result.outcome), result.message)


def _open_attempt(run: RunRecord) -> int:
    """The number of the attempt that owns the run and has not ended; 0 while there is none."""
    owner = run.owner() or 0
    return 0 if owner and run.exit(owner) is not None else owner
