"""Staying with a run until it is over, or until Ctrl-C, which leaves the run alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.views import View
from mtl_cloud.cli.words import state_words
from mtl_cloud.errors import RunFailedError
from mtl_cloud.records import Outcome

if TYPE_CHECKING:
    from mtl_cloud.clock import Clock
    from mtl_cloud.records import ResultRecord
    from mtl_cloud.run_record import RunRecord

__all__ = ["attach", "require_done", "watch"]


def watch(run: RunRecord, view: View, clock: Clock) -> ResultRecord:
    """Show every event until the run is over.

    Raises
    ------
    RunFailedError
        Nobody works on the run any more, and it is not over.
    """
    from mtl_cloud.follow import Finished, Lost, follow

    with view:
        for event in follow(run, clock=clock):
            view.show(event)
            if isinstance(event, Finished):
                return event.result
            if isinstance(event, Lost):
                raise RunFailedError(f"{run.run_id}: {event.message}", hint=f"mtl-cloud logs {run.run_id}")
    raise AssertionError("follow() ends with Finished or Lost")


def attach(run: RunRecord, view: View, clock: Clock) -> ResultRecord:
    """``watch``, but Ctrl-C ends with the way back printed: the run goes on, and so does ``KeyboardInterrupt``."""
    try:
        return watch(run, view, clock)
    except KeyboardInterrupt:
        click.echo(f"\ndetached; the run goes on. Come back with: mtl-cloud status --follow {run.run_id}", err=True)
        click.echo(f"Stop it with: mtl-cloud cancel {run.run_id}", err=True)
        raise


def require_done(run_id: str, result: ResultRecord) -> None:
    """Raise ``RunFailedError`` unless all rounds were done."""
    if result.outcome != Outcome.DONE:
        outcome = state_words(result.outcome)
        reason = f": {result.message}" if result.message else ""
        raise RunFailedError(f"{run_id} ended as {outcome}{reason}", hint=f"mtl-cloud logs {run_id}")
