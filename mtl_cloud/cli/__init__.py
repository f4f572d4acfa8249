"""The command line. Each command is a module of ``cli.commands``, imported only when it is called.

The table below holds the text of ``--help``, so that ``--help`` imports only click. Commands return their exit code
(None is 0) and raise ``MtlCloudError``; ``main`` alone turns errors into messages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from mtl_cloud import __version__
from mtl_cloud.errors import MtlCloudError

__all__ = ["COMMANDS", "INTERRUPTED", "app", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C (128 + SIGINT), so that a shell does not run ``b`` of ``a && b``."""
_BROKEN_PIPE = 141

COMMANDS = {
    "Write a job": {
        "init": "Write a commented job file to start from.",
        "validate": "Check job files; name every mistake at its line.",
        "schema": "Print the JSON schema of job files, for editors.",
        "plan": "Show what a job would do and cost; starts nothing.",
        "anchors": "Cluster a job's boxes into YOLOv3's nine anchors.",
    },
    "Prepare data": {
        "data": "Prepare datasets as shards; inspect and verify them.",
    },
    "Look at the cloud": {
        "bootstrap": "Set up AWS: network, bucket, registry, roles.",
        "iam": "Print the policies, with each statement's reason.",
        "instances": "List instance types, with GPUs and prices.",
        "explain": "Explain an error code of AWS.",
    },
    "Run it": {
        "image": "Build, push and inspect the container image.",
        "dry-run": "Rehearse a job on this machine, at no cost.",
        "submit": "Start a run and follow it; Ctrl-C detaches.",
        "exec": "Run a command in the container of a run on EC2.",
        "ssh": "Open a shell on the machine of a run on EC2.",
        "pull": "Copy files from the machine of a run on EC2.",
        "cancel": "Save and stop a run.",
        "gc": "Remove AWS resources that runs left behind.",
    },
    "Look at runs": {
        "runs": "List runs, newest first.",
        "status": "Show the state of a run.",
        "logs": "Print a run's log.",
        "metrics": "Print the metrics of each round.",
        "cost": "Show the cost of a run, attempt by attempt.",
        "report": "Write a run's report as one HTML file.",
        "compare": "Compare runs: metrics, delta_m, speed, cost.",
        "export": "Export a run's weights for other programs.",
    },
}
"""Section -> command -> its line of help. The module of a command is ``mtl_cloud.cli.commands.<command>``."""


class LazyGroup(click.Group):
    """A group that lists its commands from the table and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"mtl_cloud.cli.commands.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(section.items()), col_max=12)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  mtl-cloud init && mtl-cloud submit job.yaml && mtl-cloud report",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="mtl-cloud")
def app() -> None:
    """Train multi-task vision networks: one YAML file, on this machine or in the cloud.

    Every command has --help, --json (one JSON document on standard output) and --debug.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see ``mtl_cloud.errors``; 130 after Ctrl-C).

    Errors go to standard error: as text, or with ``--json`` as one object
    ``{"error": {"type", "message", "hint", "exit_code"}}``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app.main(arguments, prog_name="mtl-cloud", standalone_mode=False)
        sys.stdout.flush()
    except MtlCloudError as error:
        return _failed(error, arguments)
    except click.ClickException as error:
        return _misused(error, arguments)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    return code if isinstance(code, int) else 0


def _failed(error: MtlCloudError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    elif "--json" in arguments:
        _print_error_object(error, str(error), error.hint)
    else:
        hint = f"\n{click.style('hint:', bold=True)} {error.hint}" if error.hint else ""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}{hint}", err=True)
    return error.exit_code


def _misused(error: click.ClickException, arguments: list[str]) -> int:
    if "--json" in arguments:
        _print_error_object(error, error.format_message(), None)
    else:
        error.show()
    return error.exit_code


def _print_error_object(error: MtlCloudError | click.ClickException, message: str, hint: str | None) -> None:
    import json

    document = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": error.exit_code}
    click.echo(json.dumps({"error": document}, ensure_ascii=False), err=True)


def _reader_gone() -> int:
    """Standard output was closed (``| head``): exit quietly, with the interpreter's last flush to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _BROKEN_PIPE
