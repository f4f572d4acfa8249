"""``mtl-cloud metrics``: the metrics of each round, a table for each task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mtl_cloud.runs.schema import BestRound, RoundRecord


@click.command("metrics", epilog=run_examples("metrics", "metrics 4f2a --json"))
@run_options
@output_options
def command(run: str, storage: str | None, as_json: bool) -> None:
    """Print the metrics of each round: for each task a sparkline of its headline metric and a table.

    With `checkpoint: {keep_best: ...}` in the job, a * marks the round whose checkpoint is kept as the best.

    JSON: {run_id, best: {round, metric, value}, rounds: [...]}, each round as the run record holds it. best is null
    if none is kept; its metric is null if it is the mean of the tasks' headline metrics.
    """
    record = open_run(run, storage)
    rounds = record.rounds()
    best = rounds[-1].best if rounds else None
    if as_json:
        documents = [json.loads(found.encode()) for found in rounds]
        print_json({"run_id": record.run_id, "best": asdict(best) if best else None, "rounds": documents})
    elif not rounds:
        click.echo(f"{record.run_id}: no round is complete yet")
    else:
        _print_rounds(record.run_id, rounds, best)


def _print_rounds(run_id: str, rounds: Sequence[RoundRecord], best: BestRound | None) -> None:
    from mtl_cloud.report.metrics import describe_best, tasks_of

    click.echo(f"{run_id}: {len(rounds)} rounds, metrics of the validation split")
    if best is not None:
        click.echo(f"* best: {describe_best(best)}")
    for task in tasks_of(rounds):
        click.echo(f"\n{click.style(task, bold=True)}{_course(rounds, task)}")
        print_table(*_table(rounds, task, best), right=range(1, 100))


def _course(rounds: Sequence[RoundRecord], task: str) -> str:
    from mtl_cloud.report.formatting import sparkline
    from mtl_cloud.report.metrics import format_metric, headline_metric, label, metric_series

    metric = headline_metric(rounds, task)
    if metric is None:
        return ""
    series = metric_series(rounds, task, metric)
    return f"  {label(metric, task)} {sparkline(series)} {format_metric(metric, series[-1])}"


def _table(rounds: Sequence[RoundRecord], task: str, best: BestRound | None) -> tuple[list[str], list[list[str]]]:
    from mtl_cloud.report.formatting import number
    from mtl_cloud.report.metrics import curve_names, format_metric, label

    names = curve_names(rounds, task)
    rows = [
        [
            f"{record.round} *" if best and best.round == record.round else str(record.round),
            number(record.train_losses.get(task)),
            number(record.val_losses.get(task)),
            *(format_metric(name, record.metrics.get(task, {}).get(name)) for name in names),
        ]
        for record in rounds
    ]
    return ["round", "train loss", "val loss", *(label(name, task) for name in names)], rows
