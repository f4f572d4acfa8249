"""``mtl-cloud logs``: the trainer's log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.errors import UsageError

if TYPE_CHECKING:
    from mtl_cloud.runs.record import RunRecord


@click.command("logs", epilog=run_examples("logs", "logs -f", "logs 4f2a --attempt 2"))
@run_options
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the run is over; Ctrl-C stops printing only.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only this attempt's log.")
@output_options
def command(*, run: str, storage: str | None, follow: bool, attempt: int | None, as_json: bool) -> None:
    """Print the log of all attempts of a run. If there is none yet, print the container output that the backend kept.

    JSON: {run_id, attempts: [{attempt, log}]}; with --follow one line of {attempt, text} for each piece.
    """
    record = open_run(run, storage)
    if follow:
        _follow(record, attempt, as_json=as_json)
        return
    logs = {number: _text(record, number) for number in _attempts(record, attempt)}
    if not any(logs.values()) and attempt is None:
        logs = _backend_log(record)
    if as_json:
        print_json({"run_id": record.run_id, "attempts": [{"attempt": n, "log": text} for n, text in logs.items()]})
        return
    for number, text in logs.items():
        if len(logs) > 1:
            click.echo(f"--- attempt {number}", err=True)
        click.echo(text, nl=False)


def _attempts(record: RunRecord, attempt: int | None) -> list[int]:
    newest = record.owner() or 0
    if attempt is None:
        return list(range(1, newest + 1))
    if attempt > newest:
        raise UsageError(f"{record.run_id} has no attempt {attempt}", hint=f"it has {newest} so far")
    return [attempt]


def _text(record: RunRecord, attempt: int) -> str:
    return record.read_log(attempt).decode("utf-8", "replace")


def _backend_log(record: RunRecord) -> dict[int, str]:
    """What the backend kept of a run that has logged nothing, as if of its first attempt; empty if it keeps nothing."""
    from mtl_cloud.launch import RunHandle, find_launcher
    from mtl_cloud.launch.base import LogSource

    handle = RunHandle.of(record.plan())
    launcher = find_launcher(handle.backend)
    if not isinstance(launcher, LogSource):
        return {}
    return {1: "".join(f"{line}\n" for line in launcher.log_lines(handle))}


def _follow(record: RunRecord, attempt: int | None, *, as_json: bool) -> None:
    from mtl_cloud.clock import Clock
    from mtl_cloud.runs.events import AttemptEnded, LogLines, Lost
    from mtl_cloud.runs.follow import Cursor, follow

    for event in follow(record, clock=Clock(), after=Cursor(attempt=attempt or 1)):
        match event:
            case LogLines(number, text):
                click.echo(json.dumps({"attempt": number, "text": text}) if as_json else text, nl=as_json)
            case AttemptEnded(number, _) if number == attempt:
                return
            case Lost(_, message):
                click.echo(message, err=True)
