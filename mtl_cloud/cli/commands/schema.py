"""``mtl-cloud schema``: the JSON schema of job files."""

from __future__ import annotations

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json


@click.command("schema", epilog=examples("schema > job.schema.json"))
@output_options
def command(as_json: bool) -> None:  # noqa: ARG001  (a schema is JSON with or without --json)
    """Print the JSON schema of job files.

    Editors complete and check a job file that begins with
    "# yaml-language-server: $schema=job.schema.json".
    """
    from mtl_cloud.jobspec.schema import job_schema

    print_json(job_schema())
