"""Read the files of a dataset below one root: a folder, a prefix in an object store, or a folder in a tar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtl_cloud.datasets.files import ByteReader, read_bytes
from mtl_cloud.errors import DatasetError, NotFoundError
from mtl_cloud.storage import Storage

__all__ = ["FileTree", "FolderTree", "StorageTree", "TarTree"]


class FileTree(Protocol):
    """Files below one root. Paths are relative, with ``/``. Picklable."""

    @property
    def name(self) -> str:
        """Last path component of the root."""
        ...

    def names(self, folder: str) -> frozenset[str]:
        """Names directly in ``folder``; empty if there is no such folder."""
        ...

    def size(self, path: str) -> int:
        """Bytes of an existing file."""
        ...

    def read(self, path: str) -> bytes:
        """A whole file. Raises ``DatasetError`` if it is missing or cannot be read."""
        ...

    def where(self, path: str) -> str:
        """The file, or the archive and member, for messages."""
        ...


@dataclass(frozen=True)
class FolderTree:
    """A local folder."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    def names(self, folder: str) -> frozenset[str]:
        return frozenset(path.name for path in (self.root / folder).glob("*"))

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def read(self, path: str) -> bytes:
        return read_bytes(self.where(path))

    def where(self, path: str) -> str:
        return f"{self.root}/{path}"


@dataclass(frozen=True)
class StorageTree:
    """Objects of a storage, one per file."""

    storage: Storage
    root: str
    """Prefix of the keys, without a slash at its end."""
    sizes: Mapping[str, int]
    """Key -> bytes, for all objects."""

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    def names(self, folder: str) -> frozenset[str]:
        return _directly_below(f"{self.root}/{folder}/", self.sizes)

    def size(self, path: str) -> int:
        return self.sizes[f"{self.root}/{path}"]

    def read(self, path: str) -> bytes:
        try:
            return self.storage.read(f"{self.root}/{path}")
        except NotFoundError as error:
            raise DatasetError(f"{self.where(path)}: not there", hint="upload the dataset again") from error

    def where(self, path: str) -> str:
        return f"{self.storage.url}/{self.root}/{path}"


@dataclass(frozen=True)
class TarTree:
    """Members of a tar, read by their offset."""

    reader: ByteReader
    root: str
    members: Mapping[str, tuple[int, int]]
    """Full name in the tar -> offset and size in bytes."""

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    def names(self, folder: str) -> frozenset[str]:
        return _directly_below(f"{self.root}/{folder}/", self.members)

    def size(self, path: str) -> int:
        return self.members[f"{self.root}/{path}"][1]

    def read(self, path: str) -> bytes:
        if (place := self.members.get(f"{self.root}/{path}")) is None:
            raise DatasetError(f"{self.where(path)}: not in the tar", hint="download it again")
        return self.reader.read(*place)

    def where(self, path: str) -> str:
        return f"{self.reader.path}: {self.root}/{path}"


def _directly_below(prefix: str, names: Mapping[str, object]) -> frozenset[str]:
    below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return frozenset(name for name in below if "/" not in name)
