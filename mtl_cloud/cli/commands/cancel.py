"""``mtl-cloud cancel``: save and stop a run."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json

if TYPE_CHECKING:
    from mtl_cloud.clock import Clock
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.runs.schema import ResultRecord


@click.command(
    "cancel", epilog=run_examples("cancel", "cancel 4f2a --wait", "cancel 4f2a --reason 'wrong learning rate'")
)
@run_options
@click.option("--wait", is_flag=True, help="Wait until the run is over.")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the run record.")
@output_options
def command(*, run: str, storage: str | None, wait: bool, reason: str, as_json: bool) -> None:
    """Save and stop a run. Its machine is released; its record and checkpoints are kept.

    Cancelling a run twice, or one that is over, is not an error. For a run on a rented machine, the command returns
    when all of its AWS resources are removed.

    JSON: {run_id, outcome}; the outcome is null while the run is not over.
    """
    from mtl_cloud.clock import Clock

    record = open_run(run, storage)
    result = record.result()
    if result is None:
        result = _cancel(record, reason, Clock(), wait=wait)
    if as_json:
        print_json({"run_id": record.run_id, "outcome": result.outcome if result else None})
    elif result is None:
        click.echo(f"{record.run_id}: asked to save and stop")
    else:
        from mtl_cloud.cli.status_lines import result_words

        click.echo(f"{record.run_id}: {result_words(result)}")


def _cancel(record: RunRecord, reason: str, clock: Clock, *, wait: bool) -> ResultRecord | None:
    from mtl_cloud.cli.attach import renting_launcher, watch
    from mtl_cloud.cli.live_view import SilentView
    from mtl_cloud.launch.submit import release_run
    from mtl_cloud.runs.schema import CancelRecord

    request = CancelRecord(at=clock.now().isoformat(), by=getpass.getuser(), reason=reason)
    launcher = renting_launcher(record)
    if launcher:
        release_run(record, request, launcher=launcher, clock=clock)
        return record.result()
    record.request_cancel(request)
    return watch(record, SilentView(), clock) if wait else None
