"""Copies of shards are complete or absent, readers never wait for them, and they keep to the byte limit."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtl_cloud.datasets import Dataset
from mtl_cloud.datasets.shards import CachedReader, FileEntry, ShardCache, ShardDataset, open_shards
from mtl_cloud.datasets.shards.reader import StorageReader
from mtl_cloud.errors import DatasetError
from mtl_cloud.storage import MemoryStorage, open_storage

Prepared = tuple[str, Path, Callable[[str], Dataset]]


class Counting:
    """A reader that counts its reads."""

    def __init__(self, reader: StorageReader) -> None:
        self.reader, self.asked = reader, 0

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        self.asked += 1
        return self.reader.read(shard, offset, size)

    read_again = read


@pytest.fixture
def cached(prepared: Prepared, tmp_path: Path) -> tuple[ShardDataset, Counting, ShardCache]:
    """A dataset with an empty cache, the counter of reads from its source, and the cache."""
    dataset = open_shards(str(prepared[1]), "train")
    assert isinstance(dataset, ShardDataset)
    source, cache = Counting(StorageReader(open_storage(prepared[1]))), ShardCache(tmp_path / "copies")
    return replace(dataset, reader=CachedReader(source, cache)), source, cache


def test_samples_are_read_from_copies_if_there_are_any(cached: tuple[ShardDataset, Counting, ShardCache]) -> None:
    dataset, source, cache = cached
    before = [dataset[i] for i in range(len(dataset))]
    for shard in dataset.shards:
        cache.add(shard, source)
    source.asked = 0
    after = [pickle.loads(pickle.dumps(dataset))[i] for i in range(len(dataset))]
    assert source.asked == 0
    assert all(np.array_equal(one.image, other.image) for one, other in zip(before, after, strict=True))


def test_a_damaged_copy_is_bypassed_and_removed(cached: tuple[ShardDataset, Counting, ShardCache]) -> None:
    dataset, source, cache = cached
    whole = dataset[0]
    shard = dataset.shards[dataset.extent(0).shard]
    cache.add(shard, source)
    data = bytearray(cache.path(shard).read_bytes())
    data[dataset.extent(0).offset + 60] ^= 1
    cache.path(shard).write_bytes(data)
    assert not cache.holds(shard)
    assert np.array_equal(dataset[0].image, whole.image)
    assert not cache.path(shard).exists()


def test_a_truncated_copy_is_bypassed(cached: tuple[ShardDataset, Counting, ShardCache]) -> None:
    dataset, source, cache = cached
    shard, offset, _ = dataset.extent(0)
    cache.add(dataset.shards[shard], source)
    path = cache.path(dataset.shards[shard])
    path.write_bytes(path.read_bytes()[: offset + 3])
    assert np.array_equal(dataset[0].image, replace(dataset, reader=source)[0].image)


def test_bytes_with_a_wrong_checksum_become_no_copy(tmp_path: Path) -> None:
    storage, cache = MemoryStorage(), ShardCache(tmp_path)
    storage.write("a.tar", b"x" * 100)
    with pytest.raises(DatasetError, match=r"a\.tar: its CRC64NVME is not"):
        cache.add(FileEntry("a.tar", 100, "0" * 16), StorageReader(storage))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Simulates a nearly full disk for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_leaves_no_partial_copy(tmp_path: Path, size: int) -> None:
    storage, cache, data = MemoryStorage(), ShardCache(tmp_path), bytes(size)
    storage.write("a.tar", data)
    shard = FileEntry.of("a.tar", data)
    with files_of_at_most(size - 1), pytest.raises(OSError, match="too large"):
        cache.add(shard, StorageReader(storage))
    assert list(tmp_path.iterdir()) == []
    cache.add(shard, StorageReader(storage))
    assert cache.holds(shard)


def test_the_least_recently_used_copies_that_are_not_needed_are_evicted(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    shards = [FileEntry(f"{i}.tar", 100, f"{i:016x}") for i in range(4)]
    for age, shard in enumerate(shards):
        cache.path(shard).write_bytes(bytes(100))
        os.utime(cache.path(shard), (1000 - age, 1000 - age))
    cache.evict(100, needed=[shards[3]], limit=300)
    assert [cache.path(shard).exists() for shard in shards] == [True, False, False, True]
