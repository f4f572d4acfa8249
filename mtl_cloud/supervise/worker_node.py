"""The supervisor of a worker node: it runs its share of each attempt that the leader claims.

It writes nothing to the run record and makes no decisions. It serves each attempt that the leader claims, until the run
is over or this machine must stop. A stop request at any machine stops the trainers on all of them.
"""

from __future__ import annotations

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.supervise.attempt import Attempt
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import Decision
from mtl_cloud.supervise.graceful_stop import first_stop

__all__ = ["serve_leader"]


def serve_leader(run: RunRecord, context: SupervisorContext) -> Decision:
    """Serve the leader's attempts until the run is over or a stop condition of this machine holds."""
    plan, served = run.plan(), 0
    while (result := run.result()) is None:
        stop = first_stop(context.watchers)
        if stop is not None:
            return Decision("leave", Outcome.INTERRUPTED, stop.message)
        attempt = _open_attempt(run)
        if attempt > served:
            Attempt(run, plan, attempt, context).run_to_end()
            served = attempt
        else:
            context.clock.sleep(context.settings.poll_s)
    return Decision("finish", Outcome(result.outcome), result.message)


def _open_attempt(run: RunRecord) -> int:
    """The number of the attempt that owns the run and has not ended; 0 while there is none."""
    owner = run.owner() or 0
    return 0 if owner and run.exit(owner) is not None else owner
