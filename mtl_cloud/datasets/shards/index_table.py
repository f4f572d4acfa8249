"""The index of a prepared dataset as a memory-mapped array, shared by all processes of a machine."""

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
    """A ``.npy`` file of rows, mapped into memory in each process that reads it; a pickle holds only its path."""

    path: Path

    @cached_property
    def rows(self) -> Rows:
        """The rows, read-only. Raises ``DatasetError``."""
        try:
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.path}: not an index, or damaged ({error})", hint=_AGAIN) from error
        return mapped.view(np.ndarray)  # type: ignore[no-any-return]  # indexing a memmap is slow

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}


_AGAIN = "prepare the dataset again"


def encode_table(rows: Rows) -> bytes:
    """``rows`` as a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def decode_table(data: bytes, source: str) -> Rows:
    """The inverse of ``encode_table``. Raises ``DatasetError`` that names ``source``."""
    try:
        rows: Rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{source}: not an index, or damaged ({error})", hint=_AGAIN) from error
    return rows


def open_table(storage: Storage, entry: FileEntry, cache: Path | None = None) -> Table:
    """The verified table ``entry`` of ``storage``: in place if that is local, else a copy in the folder ``cache``.

    Raises
    ------
    DatasetError
        It is missing, or its size or checksum differs.
    """
    if isinstance(storage, FolderStorage):
        _check(_read(storage, entry), entry, storage)
        return Table(Path(storage.url) / entry.key)
    path = (cache or default_cache(os.environ)) / f"{entry.crc64nvme}-{entry.size}.npy"
    if not _is_whole(path, entry):
        _publish(_check(_read(storage, entry), entry, storage), path)
    return Table(path)


def default_cache(environ: Mapping[str, str]) -> Path:
    """The folder of index copies."""
    return cache_folder(environ) / "shard-index"


def _read(storage: Storage, entry: FileEntry) -> bytes:
    try:
        return storage.read(entry.key)
    except NotFoundError as error:
        raise DatasetError(f"{storage.url}/{entry.key}: not there, but in the manifest", hint=_AGAIN) from error


def _check(data: bytes, entry: FileEntry, storage: Storage) -> bytes:
    if not entry.fits(data):
        raise DatasetError(f"{storage.url}/{entry.key}: damaged: its checksum differs from the manifest", hint=_AGAIN)
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
            f"{path}: cannot write the copy of the dataset's index ({error.strerror})",
            hint="free disk space, or set XDG_CACHE_HOME to a writable folder",
        ) from error
