"""The contract that all storages keep, proven by one test suite (``tests/contract/test_storage.py``).

* A key is a relative POSIX path of portable names: no leading ``/``, no ``..``, no empty part, no part that starts
  with a dot. An object's key is never the folder of another's, not even of one that was deleted: stores that keep
  folders may keep an empty one, which then holds the name.
* ``write`` and ``create`` are atomic and durable: a reader sees the old object, the new one or none, never a part of
  one; what has returned survives a crash of the machine (in memory: of nothing).
* ``create`` succeeds for exactly one of any number of concurrent callers, threads or machines.
* ``list`` and ``children`` show whole objects only, and every object that was there before the call.
* All methods may be called from several threads at once.

Objects are written whole, never streamed into: with an open file an exception in mid-write would commit a
truncated object on S3.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple, Protocol

from mtl_cloud.errors import StorageError

__all__ = ["Data", "Entry", "Storage", "check_key", "check_prefix"]

Data = bytes | memoryview
"""What is stored. A memoryview is of bytes, and must not change before the call returns."""

# Names that mean the same on every file system and in every object store. Those that start with a dot are left to the
# storages' own temporary files.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,199}"
_KEY = re.compile(rf"(?:{_PART}/)*{_PART}")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:{_PART})?")


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int


class Storage(Protocol):
    """What the run record needs from a storage, and no more. All methods raise ``StorageError`` on failure."""

    @property
    def url(self) -> str:
        """What ``open_storage`` reopens: an absolute path or a URL, without credentials."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object. Raises ``NotFoundError``."""
        ...

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        """``size`` bytes (at least 1) from ``offset`` on; fewer, or none, where the object ends before that.

        Raises ``NotFoundError``. One request, whatever the object's size. Two ranges may be of two versions of it.
        """
        ...

    def write(self, key: str, data: Data) -> None:
        """Put or replace the object."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put the object if its key is free. Raises ``AlreadyExistsError``.

        Over a network the reply to a put that succeeded may be lost, and the retry then finds the key taken by
        itself: who meets ``AlreadyExistsError`` and can tell its own bytes from others' should look.
        """
        ...

    def list(self, prefix: str) -> list[Entry]:
        """Objects whose key starts with ``prefix`` (a plain string prefix), at any depth, sorted by key."""
        ...

    def children(self, folder: str) -> tuple[str, ...]:
        """The distinct next names below ``folder`` (``""`` or a key ending in ``/``), sorted.

        Costs as much as there are names, however many objects lie below them.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; silent when it is absent."""
        ...

    def sweep(self, prefix: str, before: datetime) -> int:
        """Remove what is left of writes that were never finished, and say how many those were.

        They began before ``before``, which has to be so long ago that no living write did; their keys start with
        ``prefix``, where the storage knows them.
        """
        ...


def check_key(key: str) -> str:
    """``key`` itself, or ``StorageError`` if no storage would take it."""
    if not _KEY.fullmatch(key):
        raise StorageError(f"{key!r} is no valid key: relative, of letters, digits and _.=+@,- between slashes")
    return key


def check_prefix(prefix: str) -> str:
    """``prefix`` itself, or ``StorageError`` if no key could start with it."""
    if not _PREFIX.fullmatch(prefix):
        raise StorageError(f"{prefix!r} is no valid prefix of a key")
    return prefix
