"""Print JSON, pairs, warnings and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "print_json", "print_pairs", "print_table", "print_warnings"]


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
