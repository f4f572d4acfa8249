"""A small dataset lives on the device: its pixels go there once, and every batch is cut out of them there.

Places and colours are drawn as loader workers draw them, and squares made as of their parts of images: a batch is the
one that a loader would have given, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE, Dataset, Least
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.crops import Cuts, Span
from mtl_cloud.train.data.transforms import Color, Placement, seen

__all__ = ["LIMIT_BYTES", "Placed", "Resident"]

LIMIT_BYTES = 512 << 20
"""Of pixels. CIFAR-10's training images are 147 MiB."""
_READERS = 16


class Placed(NamedTuple):
    """A sample, where its image comes to lie, and its colour factors."""

    sample: int
    placement: Placement
    color: Color | None


@dataclass(frozen=True)
class Resident:
    """Samples of one size that carry a class and nothing else."""

    keys: Sequence[str]
    images: Tensor
    """[n, H, W, 3] uint8 on the device."""
    labels: Tensor
    """[n] int64, or [n, classes] float32, on the host."""

    @classmethod
    def of(cls, dataset: Dataset, device: torch.device) -> Resident | None:
        """The whole of ``dataset``; None where it is not small, or not of this kind."""
        first = dataset.load(0, _as_small_as_can_be)
        if first.shrunk_from:  # workers would shrink it while they decode, by as much as each draw allows
            return None
        if dataset.info.tasks != ("classification",) or len(dataset) * first.image.nbytes > LIMIT_BYTES:
            return None
        with ThreadPoolExecutor(_READERS) as pool:
            samples = list(pool.map(dataset.__getitem__, range(len(dataset))))
        if any(sample.image.shape != first.image.shape or sample.replaces for sample in samples):
            return None
        return cls(
            keys=[sample.key for sample in samples],
            images=torch.from_numpy(np.stack([sample.image for sample in samples])).to(device),
            labels=torch.from_numpy(np.stack([np.asarray(sample.classification) for sample in samples])),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[1], self.images.shape[2]

    def batch(self, placed: Sequence[Placed], size: int, tasks: Collection[Task]) -> Batch:
        """Those samples for squares of ``size`` pixels. ``tasks`` are the job's."""
        samples, placements, colors = zip(*placed, strict=True)
        count, side = len(samples), size if "segmentation" in tasks else 0
        return Batch(
            keys=tuple(self.keys[sample] for sample in samples),
            images=torch.empty(count, 3, 0, 0, dtype=torch.uint8),
            cuts=self._cuts(samples, placements, size),
            has={task: torch.full((count,), task == "classification") for task in tasks},
            labels=self.labels[list(samples)],
            masks=torch.full((count, side, side), IGNORE, dtype=torch.uint8),
            color=None if colors[0] is None else torch.tensor(colors, dtype=torch.float32),
            boxes=torch.empty(0, 4),
            box_image=torch.empty(0, dtype=torch.int64),
            box_class=torch.empty(0, dtype=torch.int64),
            box_difficult=torch.empty(0, dtype=torch.bool),
        )

    def _cuts(self, samples: Sequence[int], placements: Sequence[Placement], size: int) -> Cuts:
        spans = [seen(self.shape, placement, size) for placement in placements]
        moved = [self._moved(span, sample) for span, sample in zip(spans, samples, strict=True)]
        return Cuts.of(self.images.view(-1, 3), moved, size)

    def _moved(self, span: Span[int], sample: int) -> Span[int]:
        """From among the pixels of one image to among those of all."""
        height, width = self.shape
        return span._replace(start=span.start + sample * height * width)


def _as_small_as_can_be(height: int, _width: int) -> Least:
    return Least(8, height)
