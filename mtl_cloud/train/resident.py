"""A small dataset lives on the device: its pixels go there once, and every batch is cut out of them there.

Places and colours are drawn as loader workers draw them. The resize is that of torch for uint8 on the CPU: weights in
16 bits, columns before rows, each pass rounded. All of these are whole numbers that float64 holds exactly, so a batch
is the one that a worker would have made, bit for bit, as far as the device sums up the weights as the CPU does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE, Dataset, Least
from mtl_cloud.tasks import Task
from mtl_cloud.train.batch import Batch
from mtl_cloud.train.transforms import GREY, Placement, visible

__all__ = ["LIMIT_BYTES", "Placed", "Resident", "paste"]

LIMIT_BYTES = 512 << 20
"""Of pixels. CIFAR-10's training images are 147 MiB."""
_READERS = 16
_MOST_BITS = 22
"""Of torch's weights. Fewer where the largest would not fit 16 bits with its sign."""


class Placed(NamedTuple):
    """A sample, where its image comes to lie, and its colour factors."""

    sample: int
    placement: Placement
    color: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Resident:
    """Samples of one size that carry a class and nothing else."""

    keys: Sequence[str]
    images: Tensor
    """[n, 3, H, W] uint8 on the device."""
    labels: Tensor
    """[n] int64, or [n, classes] float32, on the device."""

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
            images=torch.from_numpy(np.stack([sample.image for sample in samples])).to(device).permute(0, 3, 1, 2),
            labels=torch.from_numpy(np.stack([np.asarray(sample.classification) for sample in samples])).to(device),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[2], self.images.shape[3]

    def batch(self, placed: Sequence[Placed], size: int, tasks: Collection[Task]) -> Batch:
        """Those samples on squares of ``size`` pixels. ``tasks`` are the job's."""
        samples, placements, colors = zip(*placed, strict=True)
        chosen = torch.tensor(samples, device=self.images.device)
        return Batch(
            keys=tuple(self.keys[sample] for sample in samples),
            # In a loader's memory format: the network's kernels, and so its roundings, follow it.
            images=paste(self.images[chosen], placements, size).contiguous(memory_format=torch.channels_last),
            has={task: torch.full_like(chosen, task == "classification", dtype=torch.bool) for task in tasks},
            labels=self.labels[chosen],
            masks=self._no_masks(len(samples), size, tasks),
            color=None if colors[0] is None else torch.from_numpy(np.stack(colors)).to(chosen.device),
            boxes=chosen.new_empty((0, 4), dtype=torch.float32),
            box_image=chosen.new_empty(0),
            box_class=chosen.new_empty(0),
            box_difficult=chosen.new_empty(0, dtype=torch.bool),
        )

    def _no_masks(self, count: int, size: int, tasks: Collection[Task]) -> Tensor:
        side = size if "segmentation" in tasks else 0
        return torch.full((count, side, side), IGNORE, dtype=torch.uint8, device=self.images.device)


def _as_small_as_can_be(height: int, _width: int) -> Least:
    return Least(8, height)


def paste(images: Tensor, placements: Sequence[Placement], size: int) -> Tensor:
    """``transforms.place`` of many images of one size at once: [B, 3, H, W] uint8 to [B, 3, size, size] uint8."""
    height, width = images.shape[2:]
    across = _Axis.of([visible(p.left, p.width, width, size) for p in placements], width, size, images.device)
    down = _Axis.of([visible(p.top, p.height, height, size) for p in placements], height, size, images.device)
    rows = across.rounded(images.double() @ across.weights.mT)
    canvas = down.rounded(down.weights @ rows)
    canvas = torch.where(down.covered.mT & across.covered, canvas, GREY).to(torch.uint8)
    flipped = torch.tensor([p.flip for p in placements], device=images.device)
    return torch.where(flipped[:, None, None, None], canvas.flip(-1), canvas)


@dataclass(frozen=True)
class _Axis:
    """One pass of the resize, over the columns or the rows of B images."""

    weights: Tensor
    """[B, 1, size, source] float64, whole: of each of the image's pixels in each of the canvas's."""
    unit: Tensor
    """[B, 1, 1, 1] float64: what the weights in one pixel sum up to, a power of two."""
    covered: Tensor
    """[B, 1, 1, size] bool: does the image lie there?"""

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, int, int]], source: int, size: int, device: torch.device) -> _Axis:
        """``spans`` as ``visible`` gives them. Bilinear, with a low-pass filter where images shrink."""
        table = torch.tensor(spans, dtype=torch.float64, device=device).T[..., None, None, None]
        first, last, source_first, source_last = table.unbind()
        made, taken = last - first, source_last - source_first
        place = torch.arange(size, device=device)[:, None] - first
        pixel = torch.arange(source, device=device) - source_first
        covered = (place >= 0) & (place < made)
        weights = _triangles(place, pixel, made, taken) * covered
        bits = _bits(weights.amax((-2, -1), keepdim=True))
        return cls((weights * 2**bits + 0.5).floor(), 2**bits, covered.mT)

    def rounded(self, sums: Tensor) -> Tensor:
        return ((sums + self.unit / 2) / self.unit).floor().clamp(0, 255)


def _triangles(place: Tensor, pixel: Tensor, made: Tensor, taken: Tensor) -> Tensor:
    """Weights that sum up to 1 where ``taken`` pixels become ``made``: triangles about where each one comes from."""
    scale = taken / made
    reach = scale.clamp(min=1)
    centre = (place + 0.5) * scale
    near = (pixel >= (centre - reach + 0.5).floor().clamp(min=0)) & (
        pixel < (centre + reach + 0.5).floor().minimum(taken)
    )
    weights = (1 - ((pixel - centre + 0.5) / reach).abs()).clamp(min=0) * near
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _bits(largest: Tensor) -> Tensor:
    """How many torch gives the fractions of weights: as many as leave the largest one below 2^15, and at most 22."""
    doubled = 2.0 ** torch.arange(1, _MOST_BITS + 1, device=largest.device, dtype=largest.dtype)
    return ((largest * doubled + 0.5).floor() < 2**15).sum(-1, keepdim=True, dtype=largest.dtype)
