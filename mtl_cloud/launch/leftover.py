"""What a run has left behind at a backend, for ``mtl-cloud gc`` to show and to remove."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Leftover"]


@dataclass(frozen=True)
class Leftover:
    """All that one run has there, and why it should have nothing."""

    run_id: str
    owner: str
    reason: str
    names: tuple[str, ...]
    """Each as ``kind name``."""
    region: str = ""
    """At AWS."""
