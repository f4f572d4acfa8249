"""A retrying storage waits for outages, and raises final answers at once."""

from __future__ import annotations

import pytest
from run_harness import FakeClock

from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.storage.retrying import RetryingStorage


class Outage(MemoryStorage):
    """A storage that fails until a given time."""

    def __init__(self, clock: FakeClock, until_s: float) -> None:
        super().__init__("outage")
        self._clock, self._until_s = clock, until_s

    def read(self, key: str) -> bytes:
        if self._clock.seconds < self._until_s:
            raise StorageError("503 SlowDown")
        return super().read(key)


def test_an_outage_is_waited_for_with_growing_pauses() -> None:
    clock = FakeClock()
    storage = RetryingStorage(
        Outage(clock, until_s=20), patience_s=60, clock=clock, draw=lambda low, high: (low + high) / 2
    )
    storage.write("key", b"value")
    assert storage.read("key") == b"value"
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]  # half the bound, which doubles up to 10 s


def test_patience_ends_with_the_storages_own_error() -> None:
    clock = FakeClock()
    with pytest.raises(StorageError, match="503 SlowDown"):
        RetryingStorage(Outage(clock, until_s=1e9), patience_s=60, clock=clock).read("key")
    assert 50 < clock.seconds <= 60


def test_answers_are_passed_on_at_once() -> None:
    clock = FakeClock()
    storage = RetryingStorage(MemoryStorage("answers"), patience_s=60, clock=clock)
    storage.create("folder/key", b"")
    with pytest.raises(AlreadyExistsError):
        storage.create("folder/key", b"")
    with pytest.raises(NotFoundError):
        storage.read("other")
    storage.delete("other")
    assert ([entry.key for entry in storage.list("")], storage.children("")) == (["folder/key"], ("folder",))
    assert clock.pauses == []
