"""One object of a storage as a file: range reads, or a buffered stream."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

from mtl_cloud.errors import DatasetError, NotFoundError
from mtl_cloud.storage import Storage

__all__ = ["StoredFile"]

_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class StoredFile:
    """An object of known size. Picklable, as its storage is."""

    storage: Storage
    key: str
    size: int

    @property
    def path(self) -> str:
        """The object's URL."""
        return f"{self.storage.url}/{self.key}"

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DatasetError`` if the object is shorter or missing."""
        try:
            data = self.storage.read_range(self.key, offset, size) if size else b""
        except NotFoundError as error:
            raise DatasetError(f"{self.path}: gone since it was opened", hint="upload it again") from error
        if len(data) != size:
            raise DatasetError(
                f"{self.path}: ends within a member, at byte {offset + len(data)}", hint="upload it again, in full"
            )
        return data

    def open(self) -> BinaryIO:
        """A seekable stream from the start. Sequential reads are fetched in requests of 8 MiB."""
        return io.BufferedReader(_Stream(self), _BUFFER_BYTES)


class _Stream(io.RawIOBase):
    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub accepts any buffer
        data = self._file.storage.read_range(self._file.key, self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
