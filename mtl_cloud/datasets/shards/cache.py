"""Local copies of shards: whole files, verified when they are made, shared by processes and attempts.

Readers never wait for a copy: samples without one are read from the storage by range requests. So a full disk, or a
removed or damaged copy, costs time but no sample.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtl_cloud.datasets.shards.format import FileEntry
from mtl_cloud.errors import DatasetError
from mtl_cloud.user_dirs import cache_folder, whole_file

__all__ = ["CachedReader", "RangeReader", "ShardCache", "default_folder"]

_PART_BYTES = 16 << 20
"""Bytes per request when a shard is copied: large enough that latency is negligible."""
_REQUESTS = 4
"""Concurrent requests."""


class RangeReader(Protocol):
    """The source of a ``ShardDataset``'s bytes: the storage, or a cache in front of it. Picklable."""

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes of a shard.

        Raises
        ------
        DatasetError
            The shard does not exist, or is shorter.
        StorageError
            The storage does not answer.
        """
        ...

    def read_again(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """The same bytes from the source, after a cached copy was found damaged."""
        ...


def default_folder(environ: Mapping[str, str]) -> Path:
    """The folder of shard copies."""
    return cache_folder(environ) / "shards"


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies named by their content: two datasets with the same shard share its copy."""

    folder: Path

    def path(self, shard: FileEntry) -> Path:
        return self.folder / _name(shard)

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """Bytes of a copy. Raises ``OSError`` if there is none."""
        # Opened anew each time: an open file would occupy disk space after it was removed.
        file = os.open(f"{self.folder}/{_name(shard)}", os.O_RDONLY)  # a `Path` would double the time
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def holds(self, shard: FileEntry) -> bool:
        """Whether there is an intact copy. Reads all of it."""
        with contextlib.suppress(OSError):
            return shard.fits(self.path(shard).read_bytes())
        return False

    def add(self, shard: FileEntry, source: RangeReader) -> None:
        """Copy a shard in a few large requests; it gets its name only after its checksum is verified.

        Raises
        ------
        DatasetError, StorageError
            As in ``source.read``; or the bytes do not match the checksum.
        OSError
            The copy cannot be written.
        """
        starts = range(0, shard.size, _PART_BYTES)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            parts = pool.map(lambda at: source.read(shard, at, min(_PART_BYTES, shard.size - at)), starts)
            data = b"".join(parts)
        if not shard.fits(data):
            raise DatasetError(f"{shard.key}: its CRC64NVME is not {shard.crc64nvme}", hint="mtl-cloud data verify")
        with whole_file(self.path(shard)) as file:
            file.write(data)

    def evict(self, size: int, needed: Collection[FileEntry], limit: int) -> None:
        """Remove copies, least recently used first and none of ``needed``, until ``size`` more bytes fit ``limit``."""
        others = sorted(self._others(needed))
        total = sum(each for _, each, _ in others) + sum(shard.size for shard in needed if self.path(shard).exists())
        for _, each, path in others:
            if total + size <= limit:
                return
            path.unlink(missing_ok=True)
            total -= each

    def _others(self, needed: Collection[FileEntry]) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of each copy that is not in ``needed``."""
        kept = {self.path(shard) for shard in needed}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path not in kept:
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path


@dataclass(frozen=True)
class CachedReader:
    """Reads from copies, and from ``source`` where there is none."""

    source: RangeReader
    cache: ShardCache

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        with contextlib.suppress(OSError):
            data = self.cache.read(shard, offset, size)
            if len(data) == size:
                return data
        return self.source.read(shard, offset, size)

    def read_again(self, shard: FileEntry, offset: int, size: int) -> bytes:
        self.cache.path(shard).unlink(missing_ok=True)
        return self.source.read_again(shard, offset, size)


def _name(shard: FileEntry) -> str:
    return f"{shard.crc64nvme}-{shard.size}.tar"
