"""Resources that a run left behind at a backend, for ``mtl-cloud gc``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Leftover"]


@dataclass(frozen=True)
class Leftover:
    """All resources of one run, and the reason to remove them."""

    run_id: str
    owner: str
    reason: str
    names: tuple[str, ...]
    """Each as ``kind name``."""
    region: str = ""
    """AWS region; empty elsewhere."""
