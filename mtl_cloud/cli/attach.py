"""Follow a run until it is over, or until Ctrl-C, which does not stop the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.live_view import View
from mtl_cloud.cli.status_lines import state_words
from mtl_cloud.errors import RunFailedError
from mtl_cloud.runs.schema import Outcome

if TYPE_CHECKING:
    from mtl_cloud.clock import Clock
    from mtl_cloud.launch import Launcher, Watchable
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.runs.schema import ResultRecord

__all__ = ["attach", "renting_launcher", "require_done", "watch"]


def renting_launcher(run: RunRecord) -> Watchable | None:
    """The launcher of a run that is not over, where its backend brings the machine, and has to take it away."""
    from mtl_cloud.launch import Watchable, find_launcher

    backend = run.plan().backend
    launcher = find_launcher(backend) if run.result() is None else None
    return launcher if isinstance(launcher, Watchable) else None


def watch(run: RunRecord, view: View, clock: Clock, launcher: Launcher | None = None) -> ResultRecord:
    """Show every event until the run is over, then remove what its rented machine left.

    ``launcher`` is the one that has just submitted the run, if any.

    Raises
    ------
    RunFailedError
        No attempt is running any more, and the run is not over.
    LaunchError
        No machine will come any more.
    """
    from mtl_cloud.launch import RunHandle, Watchable
    from mtl_cloud.runs.events import Finished, Lost
    from mtl_cloud.runs.follow import follow

    renting = launcher if isinstance(launcher, Watchable) else renting_launcher(run)
    handle = RunHandle.of(run.plan())
    with view:
        for event in follow(run, clock=clock, machine=renting.watch(handle) if renting else None):
            view.show(event)
            if isinstance(event, Finished):
                if renting:
                    renting.stop(handle)
                return event.result
            if isinstance(event, Lost):
                raise RunFailedError(f"{run.run_id}: {event.message}", hint=f"mtl-cloud logs {run.run_id}")
    raise AssertionError("follow() ends with Finished or Lost")


def attach(run: RunRecord, view: View, clock: Clock, launcher: Launcher | None = None) -> ResultRecord:
    """``watch``; on Ctrl-C, print how to follow the run again, and raise ``KeyboardInterrupt``. The run continues."""
    try:
        return watch(run, view, clock, launcher)
    except KeyboardInterrupt:
        click.echo(
            f"\ndetached; the run continues. Follow it again with: mtl-cloud status --follow {run.run_id}", err=True
        )
        click.echo(f"Stop it with: mtl-cloud cancel {run.run_id}", err=True)
        raise


def require_done(run_id: str, result: ResultRecord) -> None:
    """Raise ``RunFailedError`` unless the run is done."""
    if result.outcome != Outcome.DONE:
        outcome = state_words(result.outcome)
        reason = f": {result.message}" if result.message else ""
        raise RunFailedError(f"{run_id} ended as {outcome}{reason}", hint=f"mtl-cloud logs {run_id}")
