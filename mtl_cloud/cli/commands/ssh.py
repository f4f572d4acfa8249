"""``mtl-cloud ssh``: a shell on the machine of a run on EC2."""

from __future__ import annotations

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.cli.remote_options import reach_options, session_of


@click.command("ssh", epilog=examples("ssh 4f2a", "ssh latest --user ec2-user"))
@click.argument("run", metavar="RUN")
@reach_options
@output_options
def command(*, run: str, storage: str | None, user: str, as_json: bool) -> int:
    """Open a shell on the machine of a run on EC2. Leaving the shell does not affect the run.

    JSON: {run_id, exit_code}, after the shell.
    """
    run_id, session = session_of(run, storage, user)
    exit_code = session.shell()
    if as_json:
        print_json({"run_id": run_id, "exit_code": exit_code})
    return exit_code
