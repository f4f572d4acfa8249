"""``mtl-cloud schema``: the JSON schema of job files, or their reference in Markdown."""

from __future__ import annotations

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json


@click.command("schema", epilog=examples("schema > job.schema.json", "schema --format markdown > docs/job-file.md"))
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "markdown"]),
    default="json",
    show_default=True,
    help="JSON schema for editors, or a reference for people.",
)
@output_options
def command(*, form: str, as_json: bool) -> None:
    """Print the JSON schema of job files, or their reference in Markdown.

    Editors complete and check a job file that begins with
    "# yaml-language-server: $schema=job.schema.json".

    JSON: the schema.
    """
    if form == "markdown" and not as_json:
        from mtl_cloud.jobspec.reference import job_reference

        click.echo(job_reference(), nl=False)
    else:
        from mtl_cloud.jobspec.schema import job_schema

        print_json(job_schema())
