"""The contract of all storages, tested by ``tests/contract/test_storage.py``.

* A key is a relative POSIX path of portable names: no leading ``/``, no ``..``, no empty part, no part that starts
  with a dot. An object's key is never the folder of another's, not even of a deleted one: a storage with folders may
  keep an empty one of that name.
* ``write`` and ``create`` are atomic and durable: a reader sees the old object, the new one or none, never a part of
  one; after the call returns, the object survives a crash of the machine (except in memory).
* ``create`` succeeds for exactly one of any number of concurrent callers, threads or machines.
* ``list`` and ``children`` show complete objects only, and every object that existed before the call.
* All methods may be called from several threads at once.

Objects are written in one call, never streamed: with an open file, an exception during a write would commit a truncated
object on S3.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple, Protocol

from mtl_cloud.errors import StorageError

__all__ = ["Data", "Entry", "Storage", "check_key", "check_prefix"]

Data = bytes | memoryview
"""Content of an object. A memoryview must be of bytes, and must not change before the call returns."""

# Names that are valid on every file system and in every object store. Names that start with a dot are reserved for the
# storages' temporary files.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,199}"
_KEY = re.compile(rf"(?:{_PART}/)*{_PART}")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:{_PART})?")


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int


class Storage(Protocol):
    """The operations that run records and datasets need. All methods raise ``StorageError`` on failure."""

    @property
    def url(self) -> str:
        """Absolute path or URL for ``open_storage``, without credentials."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object. Raises ``NotFoundError``."""
        ...

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        """``size`` bytes (at least 1) from ``offset`` on; fewer, or none, if the object ends before that.

        Raises ``NotFoundError``. It takes one request for any object size. Two ranges may be of two versions of it.
        """
        ...

    def write(self, key: str, data: Data) -> None:
        """Put or replace the object."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put the object if its key does not exist. Raises ``AlreadyExistsError``.

        Over a network, the reply to a successful put may be lost, and its retry then fails with ``AlreadyExistsError``.
        Callers should read the object and compare it with their own bytes.
        """
        ...

    def list(self, prefix: str) -> list[Entry]:
        """Objects whose key starts with ``prefix`` (a plain string prefix), at any depth, sorted by key."""
        ...

    def children(self, folder: str) -> tuple[str, ...]:
        """The distinct next names below ``folder`` (``""`` or a key ending in ``/``), sorted.

        The cost depends on the number of names only, not on the number of objects below them.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object; no error if it does not exist."""
        ...

    def sweep(self, prefix: str, before: datetime) -> int:
        """Delete the remains of unfinished writes, and return their number.

        It deletes writes that began before ``before``, which must be older than any running write, and whose keys start
        with ``prefix``, if the storage knows their keys.
        """
        ...


def check_key(key: str) -> str:
    """``key``, unchanged. Raises ``StorageError`` if it is invalid."""
    if not _KEY.fullmatch(key):
        raise StorageError(f"invalid key {key!r}: use a relative path of letters, digits and _.=+@,- between slashes")
    return key


def check_prefix(prefix: str) -> str:
    """``prefix``, unchanged. Raises ``StorageError`` if no key can start with it."""
    if not _PREFIX.fullmatch(prefix):
        raise StorageError(f"invalid prefix of a key: {prefix!r}")
    return prefix
