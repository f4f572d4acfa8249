"""The package's wheel, built as pip builds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loopback_only import package_index

__all__ = ["make_wheel"]


def make_wheel(source: Path, folder: Path) -> Path:
    """The wheel of the source tree, in the folder. pip fetches what builds it from the package index."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    with package_index():
        subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))
