"""Object storage for run records and datasets: in memory, in a folder, or behind any fsspec URL."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mtl_cloud.errors import StorageError
from mtl_cloud.storage.base import Data, Entry, Storage, check_key
from mtl_cloud.storage.folder import FolderStorage
from mtl_cloud.storage.memory import MemoryStorage
from mtl_cloud.storage.remote import FsspecStorage

__all__ = ["Data", "Entry", "FolderStorage", "FsspecStorage", "MemoryStorage", "Storage", "check_key", "open_storage"]


def open_storage(url: str | Path) -> Storage:
    """The storage at a folder's path, ``file://``, ``s3://bucket/prefix``, or any other fsspec URL.

    Within one process, ``memory://name`` is always the same storage; it ends with the process.

    Raises
    ------
    MissingExtraError
        ``s3://`` without s3fs.
    StorageError
        No fsspec protocol of that name is installed.
    """
    protocol, separator, rest = str(url).partition("://")
    if not protocol:
        raise StorageError("the storage's URL is empty", hint="give a folder or a URL such as s3://bucket/prefix")
    if not separator:
        return FolderStorage(Path(protocol))
    if protocol == "file":
        return FolderStorage(Path(rest))
    if protocol == "memory":
        return _named_memory(rest)
    return FsspecStorage(str(url))


@cache  # the map from names to storages: reopening by URL is the contract of `url`
def _named_memory(name: str) -> MemoryStorage:
    return MemoryStorage(name)
