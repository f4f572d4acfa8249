"""Copies of shards on this machine's disk: whole files, checked when they are made, shared by processes and attempts.

Nothing waits for a copy: what is not there yet is read from the storage by its range. So a full disk, a copy that was
removed or one that is damaged costs time and never a sample.
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
"""Of one request when a shard is copied: large enough that its latency does not count."""
_REQUESTS = 4
"""At a time."""


class RangeReader(Protocol):
    """Where a ``ShardDataset`` takes its bytes from: the storage itself, or a cache before it. Picklable."""

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """Exactly these bytes of a shard.

        Raises
        ------
        DatasetError
            The shard is not there, or ends before.
        StorageError
            The storage does not answer.
        """
        ...

    def read_again(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """The same, past every copy: what ``read`` gave was damaged."""
        ...


def default_folder(environ: Mapping[str, str]) -> Path:
    """Where copies of shards lie."""
    return cache_folder(environ) / "shards"


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies, named by what is in them: two datasets that hold the same shard share its copy."""

    folder: Path

    def path(self, shard: FileEntry) -> Path:
        return self.folder / _name(shard)

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        """Of a copy. Raises ``OSError`` where there is none."""
        # Opened anew each time: an open file would hold its room on the disk after it was removed.
        file = os.open(f"{self.folder}/{_name(shard)}", os.O_RDONLY)  # a path object takes as long as the opening
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def holds(self, shard: FileEntry) -> bool:
        """Is there a copy, and are its bytes those of the shard? Reads all of it."""
        with contextlib.suppress(OSError):
            return shard.fits(self.path(shard).read_bytes())
        return False

    def add(self, shard: FileEntry, source: RangeReader) -> None:
        """Copy a shard: few large requests, then its checksum, and only then its name.

        Raises
        ------
        DatasetError, StorageError
            As ``source.read``; or what came is not the shard.
        OSError
            The disk does not take it.
        """
        starts = range(0, shard.size, _PART_BYTES)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            parts = pool.map(lambda at: source.read(shard, at, min(_PART_BYTES, shard.size - at)), starts)
            data = b"".join(parts)
        if not shard.fits(data):
            raise DatasetError(f"{shard.key}: its CRC64NVME is not {shard.crc64nvme}", hint="mtl-cloud data verify")
        with whole_file(self.path(shard)) as file:
            file.write(data)

    def make_room(self, size: int, needed: Collection[FileEntry], limit: int) -> None:
        """Remove what lies here, but none of ``needed``, longest unused first, until ``size`` more fit ``limit``."""
        others = sorted(self._others(needed))
        total = sum(each for _, each, _ in others) + sum(shard.size for shard in needed if self.path(shard).exists())
        for _, each, path in others:
            if total + size <= limit:
                return
            path.unlink(missing_ok=True)
            total -= each

    def _others(self, needed: Collection[FileEntry]) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path."""
        kept = {self.path(shard) for shard in needed}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path not in kept:
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path


@dataclass(frozen=True)
class CachedReader:
    """Reads copies where there are any, and ``source`` where there are none."""

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
