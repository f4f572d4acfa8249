"""The user's cache and state directories, by the XDG base directory specification.

https://specifications.freedesktop.org/basedir/latest/
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["cache_folder", "default_scratch", "state_folder", "tail", "whole_file"]

_TAIL_BYTES = 16 << 10


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Cache directory: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return _folder(environ, "XDG_CACHE_HOME", ".cache")


def state_folder(environ: Mapping[str, str]) -> Path:
    """State directory, kept across restarts: below ``XDG_STATE_HOME``, or ``~/.local/state``."""
    return _folder(environ, "XDG_STATE_HOME", ".local/state")


def _folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    home = Path(environ.get("HOME") or Path.home())
    return Path(environ.get(variable) or home / below_home) / "mtl-cloud"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces ``path`` atomically at the end; after an error nothing is left.

    Readers of ``path`` see a complete file or none. Not safe against power loss, so use it for caches only. Raises
    ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        partial.replace(path)  # only now: closing it has written its last bytes
    finally:
        partial.unlink(missing_ok=True)


def default_scratch(run_id: str, environ: Mapping[str, str]) -> Path:
    """The run's scratch folder, which survives restarts of the machine."""
    return state_folder(environ) / run_id


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` non-blank lines of a file, within its last 16 KiB."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]
