"""What commands share: options, examples in the help, and the two ways of printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mtl_cloud.run_record import RunRecord
    from mtl_cloud.storage import Storage

__all__ = [
    "console",
    "examples",
    "open_run",
    "output_options",
    "overrides_option",
    "print_json",
    "print_pairs",
    "print_table",
    "print_warnings",
    "region_option",
    "run_examples",
    "run_options",
    "storage_option",
    "storages_of",
]

F = TypeVar("F", bound=Callable[..., Any])


def examples(*lines: str) -> str:
    """An epilog of commands to try, kept as they are written."""
    title = "Example" if len(lines) == 1 else "Examples"
    return "\n".join(["\b", f"{title}:", *(f"  mtl-cloud {line}" for line in lines)])


def run_examples(*lines: str) -> str:
    """``examples`` of a command with ``run_options``, and what its RUN may be."""
    return f"{examples(*lines)}\n\nRUN is a run's id, its start, the start of its last part, or latest (the default)."


def output_options(command: F) -> F:
    """``--json`` and ``--debug``; the handler receives ``as_json``."""
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return as_json(debug(command))


def region_option(text: str) -> Callable[[F], F]:
    """``--region`` with ``text`` as its help; AWS_REGION or AWS_DEFAULT_REGION stand for it where they are set."""
    variables = ["AWS_REGION", "AWS_DEFAULT_REGION"]
    return click.option("--region", envvar=variables, default="us-east-1", show_default=True, help=text)


def run_options(command: F) -> F:
    """The argument RUN and the option ``--storage``; the handler receives ``run`` and ``storage``."""
    run = click.argument("run", default="latest", metavar="[RUN]")
    return run(storage_option(command))


def storage_option(command: F) -> F:
    return click.option(
        "--storage",
        metavar="URL",
        help="Where to look for runs (folder or s3://…); default MTL_CLOUD_STORAGE, or all that were used from here.",
    )(command)


def overrides_option(command: F) -> F:
    """``--set a.b=value``, repeatable; the handler receives ``overrides``."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Override a field, e.g. training.batch_size=32. Repeatable.",
    )(command)


def storages_of(url: str | None) -> Iterable[Storage]:
    """The one of ``--storage``, or all that this computer has used."""
    from mtl_cloud.runs import known_storages
    from mtl_cloud.storage import open_storage

    return known_storages() if url is None else [open_storage(url)]


def open_run(name: str, storage: str | None) -> RunRecord:
    """The run that RUN means; ``storage`` narrows the search. Raises ``UsageError`` unless there is exactly one."""
    from mtl_cloud.runs import find_run

    return find_run(storages_of(storage), name)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Name and value, one pair a line; pairs without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {value}")


def print_warnings(warnings: Iterable[str]) -> None:
    """On standard error, one a line."""
    for warning in warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {warning}", err=True)


def console(*, err: bool = False) -> Console:
    """Rich's console; no colours and no wrapping of lines where the output is not a terminal."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            """``main`` knows what to do."""
            raise BrokenPipeError

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else 10_000
    return QuietConsole(file=stream, width=width, highlight=False, soft_wrap=width is not None)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> None:
    """Columns under titles; those in ``right`` are right-aligned. In a narrow terminal titles wrap, cells do not."""
    from rich.table import Table
    from rich.text import Text

    lines = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    aligned = frozenset(right)
    for index, title in enumerate(titles):
        width = max((len(line[index]) for line in lines), default=0)
        table.add_column(title, justify="right" if index in aligned else "left", vertical="bottom", min_width=width)
    for line in lines:
        table.add_row(*map(Text, line))
    console().print(table)
