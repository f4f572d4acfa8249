"""A storage in memory, for tests, docs and demonstrations."""

from __future__ import annotations

from datetime import datetime
from threading import Lock

from mtl_cloud.errors import AlreadyExistsError, NotFoundError
from mtl_cloud.storage.base import Data, Entry, check_key, check_prefix

__all__ = ["MemoryStorage"]


class MemoryStorage:
    """Fulfils the contract of ``Storage``, but its content is lost with the object.

    ``open_storage("memory://name")`` creates one that the same process can reopen by its URL.
    """

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, bytes] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"MemoryStorage({self.url!r}, {len(self._objects)} objects)"

    def read(self, key: str) -> bytes:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise NotFoundError(f"{self.url}/{key}: no such object") from None

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self.read(key)[offset : offset + size]

    def write(self, key: str, data: Data) -> None:
        with self._lock:
            self._objects[check_key(key)] = bytes(data)

    def create(self, key: str, data: bytes) -> None:
        with self._lock:
            if check_key(key) in self._objects:
                raise AlreadyExistsError(f"{self.url}/{key}: exists already")
            self._objects[key] = bytes(data)

    def list(self, prefix: str) -> list[Entry]:
        check_prefix(prefix)
        with self._lock:
            return sorted(Entry(key, len(data)) for key, data in self._objects.items() if key.startswith(prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted({entry.key.removeprefix(folder).partition("/")[0] for entry in self.list(folder)}))

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def sweep(self, prefix: str, before: datetime) -> int:  # noqa: ARG002  # there are no unfinished writes
        return 0
