"""``python -m mtl_cloud``: the same as ``mtl-cloud``."""

from __future__ import annotations

import sys

from mtl_cloud.cli import main

if __name__ == "__main__":
    sys.exit(main())
