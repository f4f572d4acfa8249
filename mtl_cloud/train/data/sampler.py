"""Which sample comes when: a pure function of (seed, epoch), the same for any number of workers and processes.

Position in a job is one integer, the number of batches already taken; resuming needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import MixingSpec

__all__ = ["BatchOrder", "Draw", "apportion", "epoch_order", "interleave", "shard_order"]

Indices: TypeAlias = npt.NDArray[np.int64]


class Draw(NamedTuple):
    """One sample to load. Epoch and sample together key its random augmentation."""

    epoch: int
    """The job's epoch; where a dataset is gone through at its own pace, the pass over that dataset."""
    sample: int


def epoch_order(samples: int, *, seed: int, epoch: int, sampling: Literal["random", "sequential"]) -> Indices:
    """[samples] every index once: a fresh uniform permutation for each epoch, or the order on disk."""
    if sampling == "sequential":
        return np.arange(samples)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


SHUFFLE_SHARDS = 64
"""Shards that are mixed with one another: some 4 GiB of them must fit the disk, for all to be read once an epoch."""


def shard_order(shards: Indices, *, seed: int, epoch: int) -> Indices:
    """[samples] every index once, those of ``SHUFFLE_SHARDS`` shards after those of as many others.

    ``shards`` is the shard of each sample. Which shards go together is drawn anew each epoch, and their samples are
    mixed fully. A shard holds samples from all over the split, so such a group is a fair sample of the whole.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    mixed = rng.permutation(len(shards))
    group = rng.permutation(shards.max() + 1) // SHUFFLE_SHARDS
    return mixed[np.argsort(group[shards[mixed]], kind="stable")]


def apportion(total: int, shares: Sequence[float]) -> Indices:
    """Whole numbers >= 1 in proportion to ``shares``, by largest remainders, that add up to ``total``."""
    exact = total * np.asarray(shares) / sum(shares)
    parts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while missing := total - parts.sum():
        gap = exact - parts
        which = gap.argmax() if missing > 0 else np.where(parts > 1, gap, np.inf).argmin()
        parts[which] += np.sign(missing)
    return parts


def interleave(parts: Indices) -> Indices:
    """[sum of parts] every i ``parts[i]`` times, each spread as evenly as can be; equal parts take turns."""
    places = np.concatenate([(np.arange(part) + 0.5) / part for part in parts])
    return np.repeat(np.arange(len(parts)), parts)[places.argsort(kind="stable")]


@dataclass(frozen=True)
class BatchOrder:
    """The batches of a whole job, from any position, as one process's share of them.

    Batch i of an epoch is ``order[i * B : (i + 1) * B]`` over all processes; process r of W takes every W-th sample of
    it from r on. An incomplete last batch is left out, unless the data are smaller than one batch.

    An epoch is as many images as all datasets hold together. One dataset, or several mixed in proportion, are seen
    once in it. With any other ratio each dataset has a fixed share of an epoch's images (round robin: of its steps),
    and is gone through pass after pass at its own pace, whatever the job's epochs.

    Raises ``TrainingError`` where an epoch has no room for every dataset.
    """

    sizes: tuple[int, ...]
    """Samples of each dataset. They are numbered end to end."""
    batch_size: int
    epochs: int
    seed: int
    sampling: Literal["random", "sequential"]
    mixing: MixingSpec = field(default_factory=MixingSpec)
    max_steps_per_epoch: int | None = None
    shards: tuple[Indices | None, ...] = ()
    """For each dataset the shard of each sample, where it lies in shards; empty when none does."""
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self._room < len(self.sizes):
            raise TrainingError(
                f"an epoch of {self.steps_per_epoch} steps has no room for {len(self.sizes)} datasets",
                hint="raise training.max_steps_per_epoch, or lower training.batch_size",
            )

    @property
    def steps_per_epoch(self) -> int:
        whole = max(1, sum(self.sizes) // self.batch_size)
        return whole if self.max_steps_per_epoch is None else min(whole, self.max_steps_per_epoch)

    @property
    def steps(self) -> int:
        """Batches of the whole job."""
        return self.epochs * self.steps_per_epoch

    def source(self, step: int) -> int | None:
        """The dataset that all of batch ``step`` is from; None where batches are mixed."""
        return int(self._turns[step % self.steps_per_epoch]) if self._takes_turns else None

    def batches(self, start: int) -> Iterator[list[Draw]]:
        """This process's share of batch ``start``, ``start + 1``, … to the job's end."""
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            draws = self._draws(epoch)
            first = start - epoch * self.steps_per_epoch if epoch == start // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                batch = draws[step * self.batch_size : (step + 1) * self.batch_size]
                yield [Draw(number, sample) for number, sample in batch[self.rank :: self.world].tolist()]

    def samples(self, epoch: int) -> Indices:
        """[samples] of all processes, in the order of the epoch's batches."""
        return self._draws(epoch)[: self.steps_per_epoch * self.batch_size, 1]

    def _draws(self, epoch: int) -> Indices:
        """[draws, 2] pass and sample."""
        if self._in_one_pass and not any(shards is not None for shards in self.shards):
            order = epoch_order(sum(self.sizes), seed=self.seed, epoch=epoch, sampling=self.sampling)
            return np.stack([np.full_like(order, epoch), order], axis=1)
        if self._in_one_pass and len(self.sizes) == 1:
            return self._pass(0, epoch)
        sources = self._sources(epoch)
        draws = np.empty((len(sources), 2), dtype=np.int64)
        for source in range(len(self.sizes)):
            mine = sources == source
            draws[mine] = self._draws_of(source, epoch, mine.sum())
        return draws

    def _draws_of(self, source: int, epoch: int, count: int) -> Indices:
        """[count, 2] of one dataset, which has had ``count`` draws in each epoch before."""
        size, start = self.sizes[source], epoch * count
        passes = range(start // size, -(-(start + count) // size))
        orders = [self._pass(source, number) for number in passes]
        return np.concatenate(orders)[start - passes.start * size :][:count]

    def _pass(self, source: int, number: int) -> Indices:
        key, shards = self._key(source, number), self.shards[source] if self.shards else None
        if shards is None or self.sampling == "sequential":
            order = epoch_order(self.sizes[source], seed=self.seed, epoch=key, sampling=self.sampling)
        else:
            order = shard_order(shards, seed=self.seed, epoch=key)
        return np.stack([np.full_like(order, number), sum(self.sizes[:source]) + order], axis=1)

    def _sources(self, epoch: int) -> Indices:
        """[draws] the dataset of each."""
        if self._takes_turns:
            return np.repeat(self._turns, self.batch_size)
        spread = interleave(self._parts)
        key = self._key(len(self.sizes), epoch)
        return spread[epoch_order(len(spread), seed=self.seed, epoch=key, sampling=self.sampling)]

    @property
    def _takes_turns(self) -> bool:
        return len(self.sizes) > 1 and self.mixing.schedule == "round_robin"

    @property
    def _in_one_pass(self) -> bool:
        return len(self.sizes) == 1 or (not self._takes_turns and self.mixing.ratio == "proportional")

    @property
    def _room(self) -> int:
        """What the datasets divide among them in an epoch: steps or images."""
        return self.steps_per_epoch * (1 if self._takes_turns else self.batch_size)

    @cached_property
    def _parts(self) -> Indices:
        """Of each dataset in ``_room``."""
        powers = {"uniform": 0.0, "sqrt": 0.5, "proportional": 1.0, "temperature": 1 / self.mixing.temperature}
        return apportion(self._room, [size ** powers[self.mixing.ratio] for size in self.sizes])

    @cached_property
    def _turns(self) -> Indices:
        """[steps_per_epoch] the dataset of each step."""
        return interleave(self._parts)

    @staticmethod
    def _key(stream: int, number: int) -> int:
        return (stream << 40) + number
