"""Shards are copied in the order of their need, before it, and within the room that there is."""

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
from mtl_cloud.train.data.prefetch import Need, ReadAhead, copies_limit, job_needs, needs_of
from mtl_cloud.train.data.sampler import BatchOrder

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
class Away:
    """Counts what is asked of a reader."""

    reader: RangeReader
    asked: int = 0

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        self.asked += 1
        return self.reader.read(shard, offset, size)

    read_again = read


def read_ahead(source: Source, folder: Path, needs: Iterable[Need], *, shards: int, horizon: int = 1000) -> ReadAhead:
    reader = CachedReader(source, ShardCache(folder))
    found = Shards(np.empty(0, dtype=np.int64), [(file, reader) for file in source.files])
    return ReadAhead(found, needs, shards * SIZE, horizon)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 9))
def test_each_shard_is_needed_from_its_first_sample_to_its_last(numbers: list[int], batch: int, start: int) -> None:
    needs = needs_of(np.array(numbers), batch, start)
    assert [need.shard for need in needs] == [n for n in dict.fromkeys(numbers) if n >= 0]
    for shard, until in needs:
        batches = [start + place // batch for place, number in enumerate(numbers) if number == shard]
        assert until == max(batches)


def test_a_job_resumed_in_mid_epoch_needs_what_is_left_of_it_first() -> None:
    shards = np.arange(40) // 4
    order = BatchOrder((40,), 4, epochs=2, seed=1, sampling="random", shards=(shards,))
    straight, resumed = list(job_needs(order, shards, 0)), list(job_needs(order, shards, 7))
    left = {int(shards[draw.sample]) for batch in list(order.batches(7))[:3] for draw in batch}
    assert {need.shard for need in resumed[: len(left)]} == left
    assert straight[-10:] == resumed[-10:]


def settle(ahead: ReadAhead) -> None:
    """Wait until the copying waits."""
    wait_for(lambda: len(ahead._moved._waiters) == 1)  # type: ignore[attr-defined]


def test_shards_are_copied_in_order_and_wait_until_there_is_room(tmp_path: Path) -> None:
    """Room for two: the third waits until the loader is past the last batch that wants the first."""
    source = Source(4)
    ahead = read_ahead(source, tmp_path, [Need(2, 1), Need(0, 3), Need(1, 5), Need(3, 9)], shards=2)
    thread = threading.Thread(target=ahead.run)
    thread.start()
    assert source.wait_for(2)
    ahead.advance(1)
    settle(ahead)
    assert source.copied == [2, 0]
    ahead.advance(2)
    assert source.wait_for(3)
    ahead.advance(4)
    assert source.wait_for(4)
    thread.join()
    assert source.copied == [2, 0, 1, 3]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * SIZE


def test_needs_are_drawn_no_further_ahead_than_the_horizon(tmp_path: Path) -> None:
    """They are made out of the orders of all epochs, of which a job may have a thousand."""
    source = Source(4)
    drawn: list[Need] = []

    def needs() -> Iterator[Need]:
        for need in [Need(0, 1), Need(1, 9), Need(2, 17), Need(3, 25)]:
            drawn.append(need)
            yield need

    ahead = read_ahead(source, tmp_path, needs(), shards=4, horizon=8)
    thread = threading.Thread(target=ahead.run, daemon=True)
    thread.start()
    for position, near in ((0, 1), (1, 2), (8, 2), (9, 3)):
        ahead.advance(position)
        assert source.wait_for(near)
        settle(ahead)
        assert len(source.copied) == near
        assert len(drawn) <= near + 1
    ahead.stop()
    thread.join()


def test_data_that_is_not_copied_is_not_followed() -> None:
    files = [(FileEntry("0.tar", SIZE, "0"), Source(1))]
    assert copies_limit(Shards(np.zeros(1, dtype=np.int64), files), 5.0) == 0


def test_a_shard_that_cannot_be_copied_is_left_out_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(3, refused=(1,))
    read_ahead(source, tmp_path, [Need(0, 1), Need(1, 1), Need(2, 1)], shards=3).run()
    assert source.copied == [0, 2]
    assert "1.tar is read by single ranges: no answer" in caplog.text


def test_a_disk_that_takes_no_more_ends_the_copying_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    read_ahead(Source(2), tmp_path / "file", [Need(0, 1), Need(1, 1)], shards=2).run()
    assert "no more shards are copied" in caplog.text


def test_copies_of_the_attempt_before_are_taken_over(tmp_path: Path) -> None:
    first, second = Source(3), Source(3)
    read_ahead(first, tmp_path, [Need(0, 1), Need(1, 1)], shards=3).run()
    read_ahead(second, tmp_path, [Need(0, 1), Need(1, 1), Need(2, 1)], shards=3).run()
    assert (first.copied, second.copied) == ([0, 1], [2])


def test_batches_pass_unchanged_and_copying_ends_with_them(tmp_path: Path) -> None:
    source = Source(3)
    ahead = read_ahead(source, tmp_path, [Need(0, 0), Need(1, 9), Need(2, 9)], shards=1)

    def batches() -> Iterator[str]:
        yield from "abc"
        assert source.wait_for(2)

    assert list(ahead.follow(batches())) == ["a", "b", "c"]
    assert source.copied == [0, 1]


def test_what_one_validation_copies_serves_the_next(tmp_path: Path) -> None:
    """The first one goes on when all is copied; from then on nothing is asked of where the shards lie."""
    write_cifar_batches(tmp_path / "original")
    found = {"train": CifarSource.of(open_cifar10(str(tmp_path / "original"), "train"))}
    prepare("cifar10", found, FolderStorage(tmp_path / "shards"), Options(shard_bytes=60_000))
    local = open_shards(str(tmp_path / "shards"), "train")
    source = Away(local.reader)
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
