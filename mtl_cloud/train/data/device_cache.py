"""Device cache for a small dataset: its pixels are copied to the device once, and every batch is cropped there.

Placements and colours are drawn and crops resized exactly as with loader workers, so a batch equals the loader's, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE, Dataset, DecodeHint
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.crops import CropRegion, Crops
from mtl_cloud.train.data.transforms import Color, Placement, visible_region

__all__ = ["LIMIT_BYTES", "DeviceCache", "PlacedSample"]

LIMIT_BYTES = 512 << 20
"""Largest dataset that is cached, in bytes of pixels. CIFAR-10's training images are 147 MiB."""
_READERS = 16


class PlacedSample(NamedTuple):
    """A sample, the placement of its image, and its colour factors."""

    sample: int
    placement: Placement
    color: Color | None


@dataclass(frozen=True)
class DeviceCache:
    """Samples of one size whose only label is a class."""

    keys: Sequence[str]
    images: Tensor
    """[n, H, W, 3] uint8 on the device."""
    labels: Tensor
    """[n] int64, or [n, classes] float32, on the host."""

    @classmethod
    def of(cls, dataset: Dataset, device: torch.device) -> DeviceCache | None:
        """The whole ``dataset``; None if it is too large, or not of this kind."""
        first = dataset.load(0, _smallest)
        if first.stored_shape:  # workers would shrink it while decoding, as far as each draw allows
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

    def batch(self, placed: Sequence[PlacedSample], size: int, tasks: Collection[Task]) -> Batch:
        """The batch of these samples, for inputs of ``size`` pixels a side. ``tasks`` are the job's."""
        samples, placements, colors = zip(*placed, strict=True)
        count, side = len(samples), size if "segmentation" in tasks else 0
        return Batch(
            keys=tuple(self.keys[sample] for sample in samples),
            images=torch.empty(count, 3, 0, 0, dtype=torch.uint8),
            crops=self._crops(samples, placements, size),
            has={task: torch.full((count,), task == "classification") for task in tasks},
            labels=self.labels[list(samples)],
            masks=torch.full((count, side, side), IGNORE, dtype=torch.uint8),
            color=None if colors[0] is None else torch.tensor(colors, dtype=torch.float32),
            boxes=torch.empty(0, 4),
            box_image=torch.empty(0, dtype=torch.int64),
            box_class=torch.empty(0, dtype=torch.int64),
            box_difficult=torch.empty(0, dtype=torch.bool),
        )

    def _crops(self, samples: Sequence[int], placements: Sequence[Placement], size: int) -> Crops:
        regions = [visible_region(self.shape, placement, size) for placement in placements]
        moved = [self._moved(region, sample) for region, sample in zip(regions, samples, strict=True)]
        return Crops.of(self.images.view(-1, 3), moved, size)

    def _moved(self, region: CropRegion[int], sample: int) -> CropRegion[int]:
        """Turns an offset within one image into an offset within all images."""
        height, width = self.shape
        return region._replace(start=region.start + sample * height * width)


def _smallest(height: int, _width: int) -> DecodeHint:
    return DecodeHint(8, height)
