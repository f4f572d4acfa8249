"""Archives of real datasets that lie beside the checkout on some machines. They are no part of the product."""

from __future__ import annotations

import fcntl
import os
import tarfile
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

__all__ = ["REAL", "SHARED_DATA", "real", "unpacked"]

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(*values: object, tier: str = "slow") -> ParameterSet:
    """A parameter of the fixtures of photographs: a real dataset, with further values that are true of it."""
    return pytest.param("real", *values, marks=[pytest.mark.real_data, getattr(pytest.mark, tier)])


REAL = real()


def unpacked(name: str) -> Path:
    """The folder that an archive, named without its extension, is unpacked in, once, outside the checkout."""
    (archive,) = SHARED_DATA.glob(f"{name}.tar*")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mtl-cloud-tests"
    target = cache / f"{name}-{archive.stat().st_size}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
            partial.rename(target)
    return target
