"""``mtl-cloud compare``: runs side by side, as in the published experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, storage_option
from mtl_cloud.cli.output import print_json, print_table
from mtl_cloud.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtl_cloud.compare import Comparison, RoundChoice
    from mtl_cloud.report.sections import Column


@click.command("compare", epilog=run_examples("compare 4f2a 91c0 77de", "compare joint-4f2a single-91c0 -o table.html"))
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@storage_option
@click.option("--at", type=click.Choice(["last", "best"]), default="last", help="Which round of a run; default last.")
@click.option("--force", is_flag=True, help="Compare runs that are not comparable, and mark them.")
@click.option("-o", "--output", metavar="FILE", help="Also write the tables as one HTML file.")
@click.option("--markdown", metavar="FILE", help="Also write the tables as Markdown.")
@output_options
def command(  # noqa: PLR0917  # click passes them by name
    runs: tuple[str, ...],
    storage: str | None,
    at: RoundChoice,
    force: bool,
    output: str | None,
    markdown: str | None,
    as_json: bool,
) -> None:
    """Compare runs: metrics, time, images/s, data wait and cost of each configuration.

    Runs that differ only in their seed share a row: mean ± standard deviation. Joint runs get delta_m, the mean
    relative gain over single-task runs of the same budget. Runs with different data, image size or number of epochs
    are refused.

    JSON: {at, tasks, rows: [{model, variant, tasks, dataset, workers, run_ids, seeds, metrics, training_s,
    images_per_s, data_wait, usd, delta, differs, ...}], workers, notes}.
    """
    from mtl_cloud.compare import compare, read_entry
    from mtl_cloud.compare import render as report

    found = [open_run(name, storage) for name in runs]
    distinct = {(run.storage.url, run.run_id): run for run in found}
    comparison = compare([read_entry(run) for run in distinct.values()], at=at, force=force)
    if output:
        _write(Path(output), report.render_comparison(comparison))
    if markdown:
        _write(Path(markdown), report.markdown(comparison))
    if as_json:
        print_json(comparison.document())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    from mtl_cloud.compare.render import columns, worker_columns

    _print_columns(columns(comparison))
    if comparison.workers:
        click.echo()
        _print_columns(worker_columns(comparison))
    click.echo()
    for note in comparison.notes:
        click.echo(note)


def _print_columns(found: Sequence[Column]) -> None:
    from mtl_cloud.compare.render import TEXT_COLUMNS

    rows = list(zip(*([cell.text for cell in column.cells] for column in found), strict=True))
    numbers = [index for index, column in enumerate(found) if column.title not in TEXT_COLUMNS]
    print_table([column.title for column in found], rows, right=numbers)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint="name another file") from error
