"""Shards are on this machine's disk before their samples are asked for, and no more of them than there is room for.

The order of a job is known from its seed, so is which shard is needed when and for how long. One thread of one process
a machine copies them in that order, waits while what it holds is still needed and fills the room, and goes on as the
batches are taken.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.shards import CachedReader, FileEntry
from mtl_cloud.datasets.shards.locality import Shards
from mtl_cloud.errors import MtlCloudError
from mtl_cloud.train.data.sampler import BatchOrder

__all__ = ["Need", "ReadAhead", "copied_ahead", "copies_limit", "job_needs", "needs_of"]

_log = logging.getLogger(__name__)
_Batch = TypeVar("_Batch")


class Need(NamedTuple):
    """A shard, and the last batch that has a sample of it."""

    shard: int
    until: int


def needs_of(numbers: npt.NDArray[np.int64], batch_size: int, start: int) -> list[Need]:
    """The shards of samples in the order of their first use; ``numbers`` are their shards, from batch ``start`` on."""
    used = numbers.tolist()
    last = {shard: start + place // batch_size for place, shard in enumerate(used)}
    return [Need(shard, last[shard]) for shard in dict.fromkeys(used) if shard >= 0]


def job_needs(order: BatchOrder, numbers: npt.NDArray[np.int64], start: int) -> Iterator[Need]:
    """Of a job from batch ``start`` to its end; ``numbers`` are the shards of all samples."""
    steps = order.steps_per_epoch
    for epoch in range(start // steps, order.epochs):
        first = max(start, epoch * steps)
        samples = order.samples(epoch)[(first - epoch * steps) * order.batch_size :]
        yield from needs_of(numbers[samples], order.batch_size, first)


def copied_ahead(
    batches: Iterable[_Batch],
    found: Shards | None,
    cache_gib: float | None,
    needs: Callable[[npt.NDArray[np.int64]], Iterable[Need]],
    *,
    horizon: int,
    start: int = 0,
) -> Iterable[_Batch]:
    """``batches``, with the shards that they need copied ahead of them, where these lie elsewhere and there is room.

    ``needs`` makes of the shards of all samples what ``ReadAhead`` wants; ``horizon`` and ``start`` are as there.
    """
    if found is None or not (limit := copies_limit(found, cache_gib)):
        return batches
    return ReadAhead(found, needs(found.numbers), limit, horizon, start).follow(batches)


def copies_limit(found: Shards, cache_gib: float | None) -> int:
    """Bytes that copies may take: ``cache_gib``, or half of what their disk has left. 0 where there is none to make."""
    folder = next((reader.cache.folder for _, reader in found.files if isinstance(reader, CachedReader)), None)
    if folder is None:
        return 0
    if cache_gib is not None:
        return int(cache_gib * 2**30)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    copies = sum(entry.stat().st_size for entry in os.scandir(folder)) if there == folder else 0
    return (shutil.disk_usage(there).free + copies) // 2


@dataclass
class ReadAhead:
    """Hands batches on, and copies the shards of those to come. ``limit`` is in bytes, for all copies on the disk."""

    found: Shards
    needs: Iterable[Need]
    """In the order in which the batches want them."""
    limit: int
    horizon: int
    """Batches. No need is looked at whose last one is further ahead: those of a whole job would be millions."""
    start: int = 0
    """Number of the first batch."""
    _position: int = field(init=False)
    _held: dict[int, int] = field(init=False, default_factory=dict)
    """Shard -> the last batch that wants it."""
    _checked: set[int] = field(init=False, default_factory=set)
    """Shards whose copies were found whole, or made, here."""
    _moved: threading.Condition = field(init=False, default_factory=threading.Condition)
    _over: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._position = self.start

    def follow(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """The same batches. The copying ends with them."""
        threading.Thread(target=self.run, name="read-ahead", daemon=True).start()
        try:
            for number, batch in enumerate(batches, start=self.start):
                self.advance(number)
                yield batch
        finally:
            self.stop()

    def advance(self, batch: int) -> None:
        """The loader asks for this batch now."""
        with self._moved:
            self._position = batch
            self._moved.notify()

    def stop(self) -> None:
        with self._moved:
            self._over = True
            self._moved.notify()

    def run(self) -> None:
        """Copy shard after shard, until all are there or ``stop``. Copies that fail are left out, and told of."""
        for need in self.needs:
            shard, reader = self.found.files[need.shard]
            if not self._wait_for(partial(self._is_near, need)):
                return
            if not isinstance(reader, CachedReader) or shard.size > self.limit:
                continue
            if not self._wait_for(partial(self._fits, need)):
                return
            self._held[need.shard] = max(need.until, self._held.get(need.shard, 0))
            try:
                self._copy(need.shard, shard, reader)
            except MtlCloudError as error:
                _log.warning("%s is read by single ranges: %s", shard.key, error)
            except OSError as error:
                _log.warning("no more shards are copied to %s: %s", reader.cache.folder, error)
                return

    def _wait_for(self, ready: Callable[[], bool]) -> bool:
        """Until it is so, as far as batches decide it. False after ``stop``."""
        with self._moved:
            self._moved.wait_for(lambda: self._over or ready())
            return not self._over

    def _is_near(self, need: Need) -> bool:
        return need.until <= self._position + self.horizon

    def _fits(self, need: Need) -> bool:
        """Beside what is still needed."""
        return self._needed_bytes(need.shard) + self.found.files[need.shard][0].size <= self.limit

    def _needed_bytes(self, but: int) -> int:
        self._held = {shard: until for shard, until in self._held.items() if until >= self._position}
        return sum(self.found.files[shard][0].size for shard in self._held if shard != but)

    def _copy(self, number: int, shard: FileEntry, reader: CachedReader) -> None:
        cache = reader.cache
        if cache.path(shard).exists() if number in self._checked else cache.holds(shard):
            cache.path(shard).touch()
        else:
            cache.make_room(shard.size, [self.found.files[held][0] for held in self._held], self.limit)
            cache.add(shard, reader.source)
        self._checked.add(number)
