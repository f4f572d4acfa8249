"""``mtl-cloud cost``: the cost of a run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json, print_table, print_warnings
from mtl_cloud.errors import LaunchError, MissingExtraError

if TYPE_CHECKING:
    from mtl_cloud.runs.charges import Bill, Charge
    from mtl_cloud.runs.record import RunRecord


@click.command("cost", epilog=run_examples("cost", "cost 4f2a --json"))
@run_options
@output_options
def command(*, run: str, storage: str | None, as_json: bool) -> None:
    """Show the cost of each attempt of a run, at the prices locked in its plan, and the savings from spot.

    JSON: {run_id, usd, saved_usd, charges: [{attempt, instance, machine, zone, market, seconds, usd_per_hour,
    on_demand_usd_per_hour, backend, usd, saved_usd}, ...]}. Unknown values are null.
    """
    record = open_run(run, storage)
    bill = _bill(record)
    if as_json:
        charges = [{**asdict(charge), "usd": charge.usd, "saved_usd": charge.saved_usd} for charge in bill.charges]
        print_json({"run_id": record.run_id, "usd": bill.usd, "saved_usd": bill.saved_usd, "charges": charges})
    elif not bill.charges:
        click.echo(f"{record.run_id}: no machine has run yet")
    else:
        _print(bill)


def _bill(record: RunRecord) -> Bill:
    """The bill from the run record, with the backend's own charges where it reports them."""
    from mtl_cloud.launch import RunHandle, get_launcher
    from mtl_cloud.launch.base import Biller
    from mtl_cloud.runs.attempts import bill_of

    handle = RunHandle.of(record.plan())
    try:
        launcher = get_launcher(handle.backend)
        billed = {handle.backend: launcher.charges(handle)} if isinstance(launcher, Biller) else {}
    except (LaunchError, MissingExtraError) as error:
        print_warnings([f"{handle.backend} does not report its charges, using the run record instead: {error}"])
        billed = {}
    return bill_of(record, billed, now=datetime.now(UTC))


def _print(bill: Bill) -> None:
    titles = ("attempt", "machine", "zone", "purchase", "time", "per hour", "cost", "saved")
    rows = [_row(charge) for charge in bill.charges]
    total = ("all", "", "", "", "", "", _usd(bill.usd), _usd(bill.saved_usd))
    print_table(titles, [*rows, total] if len(rows) > 1 else rows, right=range(4, 8))


def _row(charge: Charge) -> tuple[str, ...]:
    from mtl_cloud.report.formatting import duration

    return (
        str(charge.attempt or "failed"),
        charge.machine or charge.instance,
        charge.zone or "",
        (charge.market or "").replace("_", " "),
        duration(charge.seconds),
        _usd(charge.usd_per_hour),
        _usd(charge.usd),
        _usd(charge.saved_usd),
    )


def _usd(value: float | None) -> str:
    from mtl_cloud.report.formatting import dollars

    return "unknown" if value is None else dollars(value)
