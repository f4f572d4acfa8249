"""Where run records live: a flat map from keys to whole objects.

``open_storage`` accepts any fsspec URL (``s3://bucket/prefix`` through s3fs) or a folder. All implementations keep the
same contract, proven by one test suite (``tests/contract/test_storage.py``):

* A key is a relative POSIX path: no leading ``/``, no ``..``, no empty part.
* ``write`` and ``create`` are atomic: a reader sees the old object, the new one or none, never a part of one.
* ``create`` succeeds for exactly one of any number of concurrent callers.
* ``list`` is recursive, sorted by key, and shows only whole objects.

Objects are written whole (``bytes``), never streamed into: with an open file an exception in mid-write would commit a
truncated object on S3.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Entry", "Storage"]


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int


class Storage(Protocol):
    """What the run record needs from a storage, and no more. All methods raise ``StorageError`` on failure."""

    @property
    def url(self) -> str:
        """The URL that ``open_storage`` reopens, absolute, without credentials."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object. Raises ``NotFoundError``."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put or replace the object."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put the object if its key is free. Raises ``AlreadyExistsError``."""
        ...

    def list(self, prefix: str) -> list[Entry]:
        """Objects whose key starts with ``prefix`` (a plain string prefix), sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; silent when it is absent."""
        ...
