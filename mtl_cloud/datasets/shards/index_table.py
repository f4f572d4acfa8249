"""The index of a prepared dataset as an array that all processes of a machine share, and that no pickle carries."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtl_cloud.datasets.shards.format import FileEntry, Rows
from mtl_cloud.errors import DatasetError, NotFoundError
from mtl_cloud.storage import FolderStorage, Storage
from mtl_cloud.user_dirs import cache_folder, whole_file

__all__ = ["Table", "decode_table", "encode_table", "open_table"]


@dataclass(frozen=True)
class Table:
    """A ``.npy`` file of rows, mapped into memory in each process that looks at it."""

    path: Path

    @cached_property
    def rows(self) -> Rows:
        """Read-only. Raises ``DatasetError``."""
        try:
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.path}: not an index, or damaged ({error})", hint=_AGAIN) from error
        return mapped.view(np.ndarray)  # type: ignore[no-any-return]  # a memmap's own indexing is slow

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}


_AGAIN = "prepare the dataset again"


def encode_table(rows: Rows) -> bytes:
    """The bytes of the ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def decode_table(data: bytes, source: str) -> Rows:
    """What ``encode_table`` was given. Raises ``DatasetError`` naming ``source``."""
    try:
        rows: Rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{source}: not an index, or damaged ({error})", hint=_AGAIN) from error
    return rows


def open_table(storage: Storage, entry: FileEntry, cache: Path | None = None) -> Table:
    """The table ``entry`` of ``storage``, checked: where it lies on this machine, or a copy in the folder ``cache``.

    Raises
    ------
    DatasetError
        It is not there, or its size or checksum is another.
    """
    if isinstance(storage, FolderStorage):
        _check(_read(storage, entry), entry, storage)
        return Table(Path(storage.url) / entry.key)
    path = (cache or default_cache(os.environ)) / f"{entry.crc64nvme}-{entry.size}.npy"
    if not _is_whole(path, entry):
        _publish(_check(_read(storage, entry), entry, storage), path)
    return Table(path)


def default_cache(environ: Mapping[str, str]) -> Path:
    """Where copies of indexes are kept between runs."""
    return cache_folder(environ) / "shard-index"


def _read(storage: Storage, entry: FileEntry) -> bytes:
    try:
        return storage.read(entry.key)
    except NotFoundError as error:
        raise DatasetError(f"{storage.url}/{entry.key}: not there, but in the manifest", hint=_AGAIN) from error


def _check(data: bytes, entry: FileEntry, storage: Storage) -> bytes:
    if not entry.fits(data):
        raise DatasetError(f"{storage.url}/{entry.key}: damaged: not the bytes that were written", hint=_AGAIN)
    return data


def _is_whole(path: Path, entry: FileEntry) -> bool:
    with contextlib.suppress(OSError):
        return entry.fits(path.read_bytes())
    return False


def _publish(data: bytes, path: Path) -> None:
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot keep the dataset's index there ({error.strerror})",
            hint="make room, or set XDG_CACHE_HOME to a folder that can be written to",
        ) from error
