"""Where this program keeps files of the user, by the XDG base directory specification.

https://specifications.freedesktop.org/basedir/latest/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folder", "state_folder"]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Of what can be had again: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return _folder(environ, "XDG_CACHE_HOME", ".cache")


def state_folder(environ: Mapping[str, str]) -> Path:
    """Of what is to outlive a restart of the machine: below ``XDG_STATE_HOME``, or ``~/.local/state``."""
    return _folder(environ, "XDG_STATE_HOME", ".local/state")


def _folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    home = Path(environ.get("HOME") or Path.home())
    return Path(environ.get(variable) or home / below_home) / "mtl-cloud"
