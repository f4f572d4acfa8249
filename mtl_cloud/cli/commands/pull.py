"""``mtl-cloud pull``: copy files from the machine of a run on EC2."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.cli.remote_options import host_option, reach_options, session_of


@click.command("pull", epilog=examples("pull 4f2a /tmp/trace.json .", "pull 4f2a --host /var/log/cloud-init.log logs"))
@click.argument("run", metavar="RUN")
@click.argument("path", metavar="PATH", type=PurePosixPath)
@click.argument("dest", metavar="DEST", type=click.Path(file_okay=False, path_type=Path))
@host_option
@reach_options
@output_options
def command(
    *, run: str, path: PurePosixPath, dest: Path, host: bool, storage: str | None, user: str, as_json: bool
) -> None:
    """Copy the file or folder PATH of a run's container into the folder DEST.

    JSON: {run_id, path}; path is the local copy.
    """
    run_id, session = session_of(run, storage, user)
    session.pull(path, dest, in_container=not host)
    if as_json:
        print_json({"run_id": run_id, "path": str(dest / path.name)})
    else:
        click.echo(f"{dest / path.name}")
