"""``mtl-cloud cancel``: ask a run to save and stop."""

from __future__ import annotations

import getpass

import click

from mtl_cloud.cli.common import open_run, output_options, print_json, run_examples, run_options


@click.command(
    "cancel", epilog=run_examples("cancel", "cancel 4f2a --wait", "cancel 4f2a --reason 'wrong learning rate'")
)
@run_options
@click.option("--wait", is_flag=True, help="Return when the run is over.")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the run record.")
@output_options
def command(*, run: str, storage: str | None, wait: bool, reason: str, as_json: bool) -> None:
    """Ask a run to save and stop. Its machine is given back; the record and its checkpoints stay.

    Cancelling twice, or a run that is over, changes nothing and is no error.

    JSON: {run_id, outcome}; the outcome is null while the run is not over.
    """
    from mtl_cloud.clock import Clock
    from mtl_cloud.records import CancelRecord

    record = open_run(run, storage)
    clock = Clock()
    result = record.result()
    if result is None:
        record.request_cancel(CancelRecord(at=clock.now().isoformat(), by=getpass.getuser(), reason=reason))
        if wait:
            from mtl_cloud.cli.attach import watch
            from mtl_cloud.cli.views import SilentView

            result = watch(record, SilentView(), clock)
    if as_json:
        print_json({"run_id": record.run_id, "outcome": result.outcome if result else None})
    elif result is None:
        click.echo(f"{record.run_id}: asked to save and stop")
    else:
        from mtl_cloud.cli.words import result_words

        click.echo(f"{record.run_id}: {result_words(result)}")
