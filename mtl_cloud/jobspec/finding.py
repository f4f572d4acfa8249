"""A finding about a field of a job: the result of the schema and of the constraints, without line numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Finding", "Loc", "path_of"]

Loc: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root to a field, as ``("dataset", 1, "uri")``."""


@dataclass(frozen=True)
class Finding:
    """An error, or a warning if it is not ``fatal``."""

    loc: Loc
    message: str
    hint: str | None = None
    uses: tuple[Loc, ...] = ()
    """Other fields that it depends on. If one of them is wrong, this finding may not be true."""
    fatal: bool = True
    at_key: bool = False
    """Whether the field's name is wrong, not its value."""


def path_of(loc: Loc) -> str:
    """``dataset[1].uri`` of ``("dataset", 1, "uri")``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in loc).removeprefix(".")


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
