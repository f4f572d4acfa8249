"""A finding about a job, by field: what the schema's and the facts' checks return before places are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Finding", "Loc", "path_of"]

Loc: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root to a field."""


@dataclass(frozen=True)
class Finding:
    """One mistake, or (not ``fatal``) one doubt that a warning tells."""

    loc: Loc
    message: str
    hint: str | None = None
    uses: tuple[Loc, ...] = ()
    """Further fields that it rests on. Where one of them is wrong itself, this finding may not be true."""
    fatal: bool = True
    at_key: bool = False
    """It is the field's name that is wrong, not its value."""


def path_of(loc: Loc) -> str:
    """``dataset[1].uri`` of ``("dataset", 1, "uri")``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in loc).removeprefix(".")


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
