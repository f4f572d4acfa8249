"""Verify a prepared dataset against its checksums, and name damaged files and samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.datasets.shards.format import DatasetManifest, FileEntry, Rows, SplitManifest
from mtl_cloud.datasets.shards.index_table import decode_table
from mtl_cloud.datasets.shards.reader import read_manifest
from mtl_cloud.errors import NotFoundError
from mtl_cloud.storage import Storage

__all__ = ["Damage", "total_bytes", "verify"]

_TRANSFERS = 2
"""Shards read at a time."""


@dataclass(frozen=True)
class Damage:
    """A damaged file."""

    file: str
    what: str
    samples: tuple[str, ...] = ()
    """Keys of its damaged samples."""


def verify(storage: Storage, *, checked: Callable[[int], None] = lambda _bytes: None) -> list[Damage]:
    """All damaged files of the dataset in ``storage``. ``checked`` is called with the number of bytes of each file.

    Raises
    ------
    DatasetError
        There is no manifest, or it is damaged.
    StorageError
        The storage does not answer.
    """
    manifest = read_manifest(storage)
    return [damage for split in manifest.splits.values() for damage in _verify_split(storage, split, checked)]


def total_bytes(manifest: DatasetManifest) -> int:
    """Bytes of all files but the manifest."""
    return sum(file.size for split in manifest.splits.values() for file in split.files)


def _verify_split(storage: Storage, split: SplitManifest, checked: Callable[[int], None]) -> Iterator[Damage]:
    tables = [file for file in (split.index, split.boxes) if file is not None]
    damaged = {file.key: damage for file in tables if (damage := _verify_file(storage, file, None, 0))}
    yield from damaged.values()
    checked(sum(file.size for file in tables))
    rows = None if split.index.key in damaged else decode_table(storage.read(split.index.key), split.index.key)
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        numbered = enumerate(split.shards)
        for file, damage in zip(split.shards, pool.map(partial(_verify_shard, storage, rows), numbered), strict=True):
            checked(file.size)
            if damage:
                yield damage


def _verify_shard(storage: Storage, rows: Rows | None, numbered: tuple[int, FileEntry]) -> Damage | None:
    number, file = numbered
    return _verify_file(storage, file, rows, number)


def _verify_file(storage: Storage, file: FileEntry, rows: Rows | None, number: int) -> Damage | None:
    try:
        data = storage.read(file.key)
    except NotFoundError:
        data, what = b"", "missing"
    else:
        what = f"{len(data)} bytes instead of {file.size}" if len(data) != file.size else "wrong checksum"
    if file.fits(data):
        return None
    return Damage(
        f"{storage.url}/{file.key}", what, () if rows is None else tuple(_damaged_samples(rows, number, data))
    )


def _damaged_samples(rows: Rows, number: int, data: bytes) -> Iterator[str]:
    for row in rows[rows["shard"] == number]:
        if not all(crc64nvme(data[start : start + size]) == checksum for start, size, checksum in _ranges(row)):
            yield os.fsdecode(row["key"])


def _ranges(row: np.void) -> Iterator[tuple[int, int, int]]:
    for prefix in ("", "mask_") if "mask_size" in (row.dtype.names or ()) else ("",):
        start, size, checksum = (int(row[prefix + name]) for name in ("offset", "size", "crc64nvme"))
        if size:
            yield start, size, checksum
