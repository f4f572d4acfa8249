"""``mtl-cloud exec``: a command in the container of a run on EC2."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.cli.remote_options import host_option, reach_options, session_of


@click.command("exec", epilog=examples("exec 4f2a -- nvidia-smi", "exec 4f2a --host -- df -h", "exec latest -- bash"))
@click.argument("run", metavar="RUN")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@host_option
@reach_options
@output_options
def command(*, run: str, words: tuple[str, ...], host: bool, storage: str | None, user: str, as_json: bool) -> int:
    """Run a command in the container of a run on EC2, and exit with its exit code.

    JSON: {run_id, exit_code, stdout, stderr}.
    """
    run_id, session = session_of(run, storage, user)
    pty = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    answer = session.run(list(words), in_container=not host, hide=as_json, pty=pty)
    if as_json:
        print_json({"run_id": run_id, **asdict(answer)})
    return answer.exit_code
