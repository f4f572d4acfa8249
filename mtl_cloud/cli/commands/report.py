"""``mtl-cloud report``: a run's report as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.errors import UsageError


@click.command("report", epilog=run_examples("report", "report 4f2a -o voc.html", "report -o - | less"))
@run_options
@click.option("-o", "--output", metavar="FILE", help="Where to write; - is standard output. Default <run id>.html.")
@output_options
def command(run: str, storage: str | None, output: str | None, as_json: bool) -> None:
    """Write a run's report as one self-contained HTML file. Works during the run, too.

    JSON: {run_id, file, bytes}.
    """
    from mtl_cloud.report.build import build_report
    from mtl_cloud.report.render import render_html

    if output == "-" and as_json:
        raise UsageError("-o - and --json both use standard output", hint="name a file with -o")
    record = open_run(run, storage)
    page = render_html(build_report(record)).encode()
    if output == "-":
        click.echo(page, nl=False)
        return
    file = Path(output or f"{record.run_id}.html")
    _write(file, page)
    if as_json:
        print_json({"run_id": record.run_id, "file": str(file), "bytes": len(page)})
    else:
        click.echo(f"wrote {file}")


def _write(file: Path, page: bytes) -> None:
    try:
        file.write_bytes(page)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint="name another file with -o") from error
