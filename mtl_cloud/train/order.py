"""Which sample comes when: a pure function of (seed, epoch), the same for any number of workers and processes.

Position in a job is one integer, the number of batches already taken; resuming needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BatchOrder", "Draw", "epoch_order"]


class Draw(NamedTuple):
    """One sample to load. Epoch and sample together key its random augmentation."""

    epoch: int
    sample: int


def epoch_order(
    samples: int, *, seed: int, epoch: int, sampling: Literal["random", "sequential"]
) -> npt.NDArray[np.int64]:
    """[samples] every index once: a fresh uniform permutation for each epoch, or the order on disk."""
    if sampling == "sequential":
        return np.arange(samples)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


@dataclass(frozen=True)
class BatchOrder:
    """The batches of a whole job, from any position, as one process's share of them.

    Batch i of an epoch is ``order[i * B : (i + 1) * B]`` over all processes; process r of W takes every W-th sample of
    it from r on. An incomplete last batch is left out, unless the split is smaller than one batch.
    """

    samples: int
    batch_size: int
    epochs: int
    seed: int
    sampling: Literal["random", "sequential"]
    max_steps_per_epoch: int | None = None
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        whole = max(1, self.samples // self.batch_size)
        return whole if self.max_steps_per_epoch is None else min(whole, self.max_steps_per_epoch)

    @property
    def steps(self) -> int:
        """Batches of the whole job."""
        return self.epochs * self.steps_per_epoch

    def batches(self, start: int) -> Iterator[list[Draw]]:
        """This process's share of batch ``start``, ``start + 1``, … to the job's end."""
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            order = epoch_order(self.samples, seed=self.seed, epoch=epoch, sampling=self.sampling)
            first = start - epoch * self.steps_per_epoch if epoch == start // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [Draw(epoch, int(index)) for index in batch[self.rank :: self.world]]
