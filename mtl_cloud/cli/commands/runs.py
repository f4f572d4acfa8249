"""``mtl-cloud runs``: list runs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, output_options, storage_option, storages_of
from mtl_cloud.cli.output import print_json, print_table
from mtl_cloud.cli.status_lines import state_words

if TYPE_CHECKING:
    from mtl_cloud.runs.summary import RunSummary


@click.command("runs", epilog=examples("runs", "runs --storage s3://my-bucket/runs --json"))
@storage_option
@output_options
def command(storage: str | None, as_json: bool) -> None:
    """List the runs of every storage that this computer has used, or of one; newest first.

    JSON: {runs: [...]}, each with the keys of "status --json", without the machine.
    """
    from mtl_cloud.runs.find import list_runs
    from mtl_cloud.runs.summary import summarize

    now = datetime.now(UTC)
    summaries = [summarize(run, now) for place in storages_of(storage) for run in list_runs(place)]
    summaries.sort(key=lambda summary: datetime.fromisoformat(summary.created_at), reverse=True)
    if as_json:
        print_json({"runs": [asdict(summary) for summary in summaries]})
    elif summaries:
        print_table(["run", "state", "round", "backend", "created", "time", "cost"], map(_row, summaries))
    else:
        click.echo("no runs yet; start one with: mtl-cloud submit job.yaml")


def _row(summary: RunSummary) -> list[str]:
    from mtl_cloud.report.formatting import dollars, duration, instant

    return [
        summary.run_id,
        state_words(summary.state),
        f"{summary.round}/{summary.rounds}",
        summary.backend,
        instant(summary.created_at),
        duration(summary.seconds) if summary.attempt else "",
        "" if summary.usd is None else dollars(summary.usd),
    ]
