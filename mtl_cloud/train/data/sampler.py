"""Batch sampler: the order of samples is a pure function of (seed, epoch), for any number of workers and processes.

The position in a job is one integer, the number of batches already taken; resuming needs nothing else.
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

__all__ = ["BatchSampler", "Draw", "apportion", "epoch_order", "interleave", "shard_order"]

Indices: TypeAlias = npt.NDArray[np.int64]


class Draw(NamedTuple):
    """One sample to load. Epoch and sample together key its random augmentation."""

    epoch: int
    """The job's epoch; or, where a dataset has its own pace, the number of the pass over that dataset."""
    sample: int


def epoch_order(samples: int, *, seed: int, epoch: int, sampling: Literal["random", "sequential"]) -> Indices:
    """[samples] every index once: a fresh uniform permutation for each epoch, or the order on disk."""
    if sampling == "sequential":
        return np.arange(samples)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


SHUFFLE_SHARDS = 64
"""Shards whose samples are mixed: some 4 GiB, which must fit the disk for each shard to be read once per epoch."""


def shard_order(shards: Indices, *, seed: int, epoch: int) -> Indices:
    """[samples] every index once, by groups of ``SHUFFLE_SHARDS`` shards.

    ``shards`` is the shard of each sample. Each epoch draws new groups of shards; samples are fully shuffled within a
    group. A shard holds samples from all over the split, so a group is a fair sample of the whole.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    mixed = rng.permutation(len(shards))
    group = rng.permutation(shards.max() + 1) // SHUFFLE_SHARDS
    return mixed[np.argsort(group[shards[mixed]], kind="stable")]


def apportion(total: int, shares: Sequence[float]) -> Indices:
    """Integers >= 1 in proportion to ``shares`` that add up to ``total``, by the largest-remainder method."""
    exact = total * np.asarray(shares) / sum(shares)
    parts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while missing := total - parts.sum():
        gap = exact - parts
        which = gap.argmax() if missing > 0 else np.where(parts > 1, gap, np.inf).argmin()
        parts[which] += np.sign(missing)
    return parts


def interleave(parts: Indices) -> Indices:
    """[sum of parts] every i ``parts[i]`` times, each spread as evenly as possible; equal parts alternate."""
    places = np.concatenate([(np.arange(part) + 0.5) / part for part in parts])
    return np.repeat(np.arange(len(parts)), parts)[places.argsort(kind="stable")]


@dataclass(frozen=True)
class BatchSampler:
    """The batches of a whole job, from any position: one process's share of them.

    Batch i of an epoch is ``order[i * B : (i + 1) * B]`` over all processes; process r of W takes every W-th sample of
    it from r on. An incomplete last batch is left out, unless the data are smaller than one batch.

    An epoch has as many images as all datasets together. One dataset, or several mixed in proportion, are seen once per
    epoch. With any other ratio each dataset has a fixed share of an epoch's images (round robin: of its steps), and its
    passes do not align with the job's epochs.

    Raises ``TrainingError`` if an epoch has fewer images (round robin: steps) than there are datasets.
    """

    sizes: tuple[int, ...]
    """Samples of each dataset. Sample indices run through all datasets in turn."""
    batch_size: int
    epochs: int
    seed: int
    sampling: Literal["random", "sequential"]
    mixing: MixingSpec = field(default_factory=MixingSpec)
    max_steps_per_epoch: int | None = None
    shards: tuple[Indices | None, ...] = ()
    """For each dataset the shard of each sample, or None if it is not sharded; empty if none is."""
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self._units < len(self.sizes):
            raise TrainingError(
                f"an epoch of {self.steps_per_epoch} steps is too short for {len(self.sizes)} datasets",
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
        """The dataset of batch ``step``; None where batches are mixed."""
        return int(self._source_by_step[step % self.steps_per_epoch]) if self._is_round_robin else None

    def batches(self, start: int) -> Iterator[list[Draw]]:
        """This process's share of batch ``start``, ``start + 1``, … to the job's end."""
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            draws = self._draws(epoch)
            first = start - epoch * self.steps_per_epoch if epoch == start // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                batch = draws[step * self.batch_size : (step + 1) * self.batch_size]
                yield [Draw(number, sample) for number, sample in batch[self.rank :: self.world].tolist()]

    def samples(self, epoch: int) -> Indices:
        """[samples] the epoch's samples of all processes, in the order of its batches."""
        return self._draws(epoch)[: self.steps_per_epoch * self.batch_size, 1]

    def _draws(self, epoch: int) -> Indices:
        """[draws, 2] the pass and the sample of each draw."""
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
        """[count, 2] the draws of one dataset, which had ``count`` draws in each earlier epoch."""
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
        """[draws] the dataset of each draw."""
        if self._is_round_robin:
            return np.repeat(self._source_by_step, self.batch_size)
        spread = interleave(self._parts)
        key = self._key(len(self.sizes), epoch)
        return spread[epoch_order(len(spread), seed=self.seed, epoch=key, sampling=self.sampling)]

    @property
    def _is_round_robin(self) -> bool:
        return len(self.sizes) > 1 and self.mixing.schedule == "round_robin"

    @property
    def _in_one_pass(self) -> bool:
        return len(self.sizes) == 1 or (not self._is_round_robin and self.mixing.ratio == "proportional")

    @property
    def _units(self) -> int:
        """Steps (round robin) or images of an epoch, which the datasets share."""
        return self.steps_per_epoch * (1 if self._is_round_robin else self.batch_size)

    @cached_property
    def _parts(self) -> Indices:
        """[datasets] each dataset's share of ``_units``."""
        powers = {"uniform": 0.0, "sqrt": 0.5, "proportional": 1.0, "temperature": 1 / self.mixing.temperature}
        return apportion(self._units, [size ** powers[self.mixing.ratio] for size in self.sizes])

    @cached_property
    def _source_by_step(self) -> Indices:
        """[steps_per_epoch] the dataset of each step."""
        return interleave(self._parts)

    @staticmethod
    def _key(stream: int, number: int) -> int:
        return (stream << 40) + number
