"""Shards are prefetched in the order of their use, and within the byte limit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from dataset_harness import write_cifar_batches
from hypothesis import given
from hypothesis import strategies as st
from trainer_harness import assert_same_batch
from waiting import PATIENCE_S, wait_for

from mtl_cloud.datasets.formats.cifar10 import open_cifar10
from mtl_cloud.datasets.preparation.prepare import Options, prepare
from mtl_cloud.datasets.preparation.sources import CifarSource
from mtl_cloud.datasets.shards import CachedReader, FileEntry, RangeReader, ShardCache
from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.datasets.shards.locality import Shards, shards_of
from mtl_cloud.datasets.shards.reader import open_shards
from mtl_cloud.errors import StorageError
from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.storage import FolderStorage
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.loader import Collate, validation_batches
from mtl_cloud.train.data.prefetch import Prefetcher, ShardUse, cache_limit, job_shard_uses, shard_uses
from mtl_cloud.train.data.sampler import BatchSampler

SIZE = 1000


class Source:
    """Shards in memory; remembers the order in which they were copied, and may refuse some."""

    def __init__(self, count: int, *, refused: tuple[int, ...] = ()) -> None:
        self.data = {f"{i}.tar": bytes([i]) * SIZE for i in range(count)}
        self.files = [FileEntry(key, SIZE, f"{crc64nvme(data):016x}") for key, data in self.data.items()]
        self.refused = {f"{i}.tar" for i in refused}
        self.copied: list[int] = []
        self.asked = threading.Condition()

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        if shard.key in self.refused:
            raise StorageError("no answer")
        with self.asked:
            self.copied.append(int(shard.key.removesuffix(".tar")))
            self.asked.notify_all()
        return self.data[shard.key][offset : offset + size]

    read_again = read

    def wait_for(self, count: int) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: len(self.copied) >= count, PATIENCE_S)


@dataclass
class CountingReader:
    """Counts the reads of a reader."""

    reader: RangeReader
    asked: int = 0

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        self.asked += 1
        return self.reader.read(shard, offset, size)

    read_again = read


def make_prefetcher(
    source: Source, folder: Path, uses: Iterable[ShardUse], *, shards: int, horizon: int = 1000
) -> Prefetcher:
    reader = CachedReader(source, ShardCache(folder))
    found = Shards(np.empty(0, dtype=np.int64), [(file, reader) for file in source.files])
    return Prefetcher(found, uses, shards * SIZE, horizon)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 9))
def test_each_shard_is_in_use_from_its_first_sample_to_its_last(numbers: list[int], batch: int, start: int) -> None:
    uses = shard_uses(np.array(numbers), batch, start)
    assert [use.shard for use in uses] == [n for n in dict.fromkeys(numbers) if n >= 0]
    for shard, last_batch in uses:
        batches = [start + place // batch for place, number in enumerate(numbers) if number == shard]
        assert last_batch == max(batches)


def test_a_job_resumed_in_mid_epoch_first_uses_the_shards_of_its_rest() -> None:
    shards = np.arange(40) // 4
    sampler = BatchSampler((40,), 4, epochs=2, seed=1, sampling="random", shards=(shards,))
    straight, resumed = list(job_shard_uses(sampler, shards, 0)), list(job_shard_uses(sampler, shards, 7))
    left = {int(shards[draw.sample]) for batch in list(sampler.batches(7))[:3] for draw in batch}
    assert {use.shard for use in resumed[: len(left)]} == left
    assert straight[-10:] == resumed[-10:]


def settle(prefetcher: Prefetcher) -> None:
    """Wait until the prefetcher is waiting."""
    wait_for(lambda: len(prefetcher._changed._waiters) == 1)  # type: ignore[attr-defined]


def test_shards_are_copied_in_order_and_wait_for_free_space(tmp_path: Path) -> None:
    """The limit fits two shards: the third waits until the loader is past the last batch of the first."""
    source = Source(4)
    uses = [ShardUse(2, 1), ShardUse(0, 3), ShardUse(1, 5), ShardUse(3, 9)]
    prefetcher = make_prefetcher(source, tmp_path, uses, shards=2)
    thread = threading.Thread(target=prefetcher.run)
    thread.start()
    assert source.wait_for(2)
    prefetcher.advance(1)
    settle(prefetcher)
    assert source.copied == [2, 0]
    prefetcher.advance(2)
    assert source.wait_for(3)
    prefetcher.advance(4)
    assert source.wait_for(4)
    thread.join()
    assert source.copied == [2, 0, 1, 3]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * SIZE


def test_uses_are_computed_no_further_ahead_than_the_horizon(tmp_path: Path) -> None:
    """They are computed from the orders of all epochs, and a job may have a thousand."""
    source = Source(4)
    drawn: list[ShardUse] = []

    def uses() -> Iterator[ShardUse]:
        for use in [ShardUse(0, 1), ShardUse(1, 9), ShardUse(2, 17), ShardUse(3, 25)]:
            drawn.append(use)
            yield use

    prefetcher = make_prefetcher(source, tmp_path, uses(), shards=4, horizon=8)
    thread = threading.Thread(target=prefetcher.run, daemon=True)
    thread.start()
    for position, near in ((0, 1), (1, 2), (8, 2), (9, 3)):
        prefetcher.advance(position)
        assert source.wait_for(near)
        settle(prefetcher)
        assert len(source.copied) == near
        assert len(drawn) <= near + 1
    prefetcher.stop()
    thread.join()


def test_local_data_is_not_prefetched() -> None:
    files = [(FileEntry("0.tar", SIZE, "0"), Source(1))]
    assert cache_limit(Shards(np.zeros(1, dtype=np.int64), files), 5.0) == 0


def test_a_shard_that_cannot_be_copied_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(3, refused=(1,))
    make_prefetcher(source, tmp_path, [ShardUse(0, 1), ShardUse(1, 1), ShardUse(2, 1)], shards=3).run()
    assert source.copied == [0, 2]
    assert "1.tar could not be copied, its samples are read by range requests: no answer" in caplog.text


def test_a_failing_disk_ends_the_prefetching_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    make_prefetcher(Source(2), tmp_path / "file", [ShardUse(0, 1), ShardUse(1, 1)], shards=2).run()
    assert f"prefetching to {tmp_path / 'file'} stopped" in caplog.text


def test_copies_of_the_previous_attempt_are_reused(tmp_path: Path) -> None:
    first, second = Source(3), Source(3)
    make_prefetcher(first, tmp_path, [ShardUse(0, 1), ShardUse(1, 1)], shards=3).run()
    make_prefetcher(second, tmp_path, [ShardUse(0, 1), ShardUse(1, 1), ShardUse(2, 1)], shards=3).run()
    assert (first.copied, second.copied) == ([0, 1], [2])


def test_batches_pass_unchanged_and_copying_ends_with_them(tmp_path: Path) -> None:
    source = Source(3)
    prefetcher = make_prefetcher(source, tmp_path, [ShardUse(0, 0), ShardUse(1, 9), ShardUse(2, 9)], shards=1)

    def batches() -> Iterator[str]:
        yield from "abc"
        assert source.wait_for(2)

    assert list(prefetcher.follow(batches())) == ["a", "b", "c"]
    assert source.copied == [0, 1]


def test_shards_copied_in_one_validation_are_reused_in_the_next(tmp_path: Path) -> None:
    """The first validation continues once all shards are copied; from then on the source is not read."""
    write_cifar_batches(tmp_path / "original")
    found = {"train": CifarSource.of(open_cifar10(str(tmp_path / "original"), "train"))}
    prepare("cifar10", found, FolderStorage(tmp_path / "shards"), Options(shard_bytes=60_000))
    local = open_shards(str(tmp_path / "shards"), "train")
    source = CountingReader(local.reader)
    data = replace(local, reader=CachedReader(source, ShardCache(tmp_path / "copies")))
    collate, training = Collate(data.info.classes, multi_label=False), TrainingSpec(image_size=32, loader_workers=0)

    def batches() -> Iterator[Batch]:
        return validation_batches(data, training, collate, rank=0, world=1, pin=False, shards=shards_of(data))

    first = batches()
    once = [next(first)]
    wait_for(lambda: len(list((tmp_path / "copies").glob("*.tar"))) == len(data.shards) > 2)
    asked = source.asked
    once += first
    for mine, theirs in zip(batches(), once, strict=True):
        assert_same_batch(mine, theirs)
    assert source.asked == asked
