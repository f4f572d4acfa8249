"""Options and help examples that commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.storage import Storage

__all__ = [
    "examples",
    "open_run",
    "output_options",
    "overrides_option",
    "region_option",
    "run_examples",
    "run_options",
    "storage_option",
    "storages_of",
]

F = TypeVar("F", bound=Callable[..., Any])


def examples(*lines: str) -> str:
    """A help epilog with example commands, one a line."""
    title = "Example" if len(lines) == 1 else "Examples"
    return "\n".join(["\b", f"{title}:", *(f"  mtl-cloud {line}" for line in lines)])


def run_examples(*lines: str) -> str:
    """``examples`` for a command with ``run_options``, with an explanation of RUN."""
    return f"{examples(*lines)}\n\nRUN is a run's id, the start of an id or of its last part, or latest (the default)."


def output_options(command: F) -> F:
    """``--json`` and ``--debug``; the handler receives ``as_json``."""
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return as_json(debug(command))


def region_option(text: str) -> Callable[[F], F]:
    """``--region`` with ``text`` as its help; AWS_REGION or AWS_DEFAULT_REGION override its default."""
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
        help="Where to look for runs (folder or s3://…). Default: MTL_CLOUD_STORAGE, or all used on this computer.",
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
    """The storage of ``--storage``, or all that this computer has used."""
    from mtl_cloud.runs.find import known_storages
    from mtl_cloud.storage import open_storage

    return known_storages() if url is None else [open_storage(url)]


def open_run(name: str, storage: str | None) -> RunRecord:
    """The run that RUN names; ``storage`` narrows the search. Raises ``UsageError`` unless exactly one matches."""
    from mtl_cloud.runs.find import find_run

    return find_run(storages_of(storage), name)
