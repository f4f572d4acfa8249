"""Prefetch shards to local disk within a byte limit, before their samples are read.

The seed determines the order of samples, and thus when each shard is first and last used. One thread, in one process
per machine, copies the shards in that order. It waits while the copies still in use fill the limit, and resumes as
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
from mtl_cloud.train.data.sampler import BatchSampler

__all__ = ["Prefetcher", "ShardUse", "cache_limit", "job_shard_uses", "prefetched", "shard_uses"]

_log = logging.getLogger(__name__)
_Batch = TypeVar("_Batch")


class ShardUse(NamedTuple):
    """A shard, and the last batch that has a sample of it."""

    shard: int
    last_batch: int


def shard_uses(numbers: npt.NDArray[np.int64], batch_size: int, start: int) -> list[ShardUse]:
    """The shards in the order of their first use; ``numbers`` is the shard of each sample, from batch ``start`` on."""
    used = numbers.tolist()
    last = {shard: start + place // batch_size for place, shard in enumerate(used)}
    return [ShardUse(shard, last[shard]) for shard in dict.fromkeys(used) if shard >= 0]


def job_shard_uses(sampler: BatchSampler, numbers: npt.NDArray[np.int64], start: int) -> Iterator[ShardUse]:
    """The uses of a job from batch ``start`` to its end; ``numbers`` is the shard of each sample."""
    steps = sampler.steps_per_epoch
    for epoch in range(start // steps, sampler.epochs):
        first = max(start, epoch * steps)
        samples = sampler.samples(epoch)[(first - epoch * steps) * sampler.batch_size :]
        yield from shard_uses(numbers[samples], sampler.batch_size, first)


def prefetched(
    batches: Iterable[_Batch],
    shards: Shards | None,
    cache_gib: float | None,
    uses: Callable[[npt.NDArray[np.int64]], Iterable[ShardUse]],
    *,
    horizon: int,
    start: int = 0,
) -> Iterable[_Batch]:
    """``batches``, with their shards prefetched if these are remote and ``cache_gib`` is not 0.

    ``uses`` turns the shard of each sample into the uses that ``Prefetcher`` needs; ``horizon`` and ``start`` are as
    there.
    """
    if shards is None or not (limit := cache_limit(shards, cache_gib)):
        return batches
    return Prefetcher(shards, uses(shards.numbers), limit, horizon, start).follow(batches)


def cache_limit(shards: Shards, cache_gib: float | None) -> int:
    """Bytes that copies may take: ``cache_gib``, or half of the free space on their disk. 0 if all shards are local."""
    folder = next((reader.cache.folder for _, reader in shards.files if isinstance(reader, CachedReader)), None)
    if folder is None:
        return 0
    if cache_gib is not None:
        return int(cache_gib * 2**30)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    copies = sum(entry.stat().st_size for entry in os.scandir(folder)) if existing == folder else 0
    return (shutil.disk_usage(existing).free + copies) // 2


@dataclass
class Prefetcher:
    """Passes batches through, and copies the shards of the coming ones."""

    shards: Shards
    uses: Iterable[ShardUse]
    """In the order of their first batch."""
    limit: int
    """Bytes of all copies on the disk."""
    horizon: int
    """Batches. A use whose last batch is further ahead has to wait: a whole job would have millions of uses."""
    start: int = 0
    """Number of the first batch."""
    _position: int = field(init=False)
    _held: dict[int, int] = field(init=False, default_factory=dict)
    """Copied shard -> its last batch."""
    _verified: set[int] = field(init=False, default_factory=set)
    """Shards whose copies this object has verified or made."""
    _changed: threading.Condition = field(init=False, default_factory=threading.Condition)
    _stopped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._position = self.start

    def follow(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """The same batches. The copying ends with them."""
        threading.Thread(target=self.run, name="prefetch", daemon=True).start()
        try:
            for number, batch in enumerate(batches, start=self.start):
                self.advance(number)
                yield batch
        finally:
            self.stop()

    def advance(self, batch: int) -> None:
        """The loader now requests ``batch``."""
        with self._changed:
            self._position = batch
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Copy shard after shard, until all are copied or ``stop`` is called. Failed copies are skipped and logged."""
        for use in self.uses:
            shard, reader = self.shards.files[use.shard]
            if not self._wait_for(partial(self._is_near, use)):
                return
            if not isinstance(reader, CachedReader) or shard.size > self.limit:
                continue
            if not self._wait_for(partial(self._fits, use)):
                return
            self._held[use.shard] = max(use.last_batch, self._held.get(use.shard, 0))
            try:
                self._copy(use.shard, shard, reader)
            except MtlCloudError as error:
                _log.warning("%s could not be copied, its samples are read by range requests: %s", shard.key, error)
            except OSError as error:
                _log.warning("prefetching to %s stopped: %s", reader.cache.folder, error)
                return

    def _wait_for(self, ready: Callable[[], bool]) -> bool:
        """Wait until ``ready``, which is checked at each new batch. False after ``stop``."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or ready())
            return not self._stopped

    def _is_near(self, use: ShardUse) -> bool:
        return use.last_batch <= self._position + self.horizon

    def _fits(self, use: ShardUse) -> bool:
        """Whether its copy fits the limit beside those still in use."""
        return self._bytes_in_use(use.shard) + self.shards.files[use.shard][0].size <= self.limit

    def _bytes_in_use(self, but: int) -> int:
        self._held = {shard: last for shard, last in self._held.items() if last >= self._position}
        return sum(self.shards.files[shard][0].size for shard in self._held if shard != but)

    def _copy(self, number: int, shard: FileEntry, reader: CachedReader) -> None:
        cache = reader.cache
        if cache.path(shard).exists() if number in self._verified else cache.holds(shard):
            cache.path(shard).touch()
        else:
            cache.evict(shard.size, [self.shards.files[held][0] for held in self._held], self.limit)
            cache.add(shard, reader.source)
        self._verified.add(number)
