"""Data loading: workers decode and crop images and return uint8 batches in one deterministic order."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing.context import BaseContext
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtl_cloud.datasets.base import IGNORE, Dataset
from mtl_cloud.datasets.shards.locality import Shards
from mtl_cloud.errors import MtlCloudError
from mtl_cloud.jobspec.job import AugmentSpec, Fit, TrainingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.buffers import BatchBuffer, BufferPool
from mtl_cloud.train.data.crops import Crops
from mtl_cloud.train.data.device_cache import DeviceCache, PlacedSample
from mtl_cloud.train.data.prefetch import job_shard_uses, prefetched, shard_uses
from mtl_cloud.train.data.sampler import BatchSampler, Draw
from mtl_cloud.train.data.transforms import (
    Canvas,
    Color,
    Placement,
    SampleRng,
    center_crop,
    decode_hint,
    draw_color,
    draw_crop,
    draw_placement,
    letterbox,
    place,
)
from mtl_cloud.train.data.worker_failures import explain_worker_deaths

__all__ = ["BatchDataset", "Collate", "TrainingView", "ValidationView", "training_batches", "validation_batches"]

_PREFETCH = 4
"""Batches requested from each loader worker beyond the one that the trainer took last."""
_Item: TypeAlias = tuple[Canvas, Color | None]
"""A sample on its canvas, and its colour factors. Of the decoded image only the crop in the buffer is kept: the next
image reuses its memory, which is still in the processor's cache."""
_Drawn: TypeAlias = tuple[Placement, np.random.Generator]
"""A sample's placement, and the generator that drew it."""


class _View(Protocol):
    """A dataset with its placement and augmentation."""

    @property
    def size(self) -> int:
        """Side of the canvas, pixels."""
        ...

    def load(self, index: Any, buffer: BatchBuffer) -> _Item:
        """One sample; adds the visible crop of its image to ``buffer``."""
        ...


@dataclass(frozen=True)
class TrainingView:
    """Training samples, with random placement and colour factors."""

    dataset: Dataset
    size: int
    augment: AugmentSpec
    seed: int
    fit: Fit = "letterbox"

    def load(self, draw: Draw, buffer: BatchBuffer) -> _Item:
        drawn: dict[tuple[int, int], _Drawn] = {}  # the decoder needs it first, and then this function

        def draw_once(shape: tuple[int, int]) -> _Drawn:
            return drawn.get(shape) or drawn.setdefault(shape, self._draw(draw, shape))

        sample = self.dataset.load(draw.sample, lambda *shape: decode_hint(shape, draw_once(shape)[0], self.size))
        placement, rng = draw_once(sample.shape)
        return place(sample, placement, self.size, buffer.add), draw_color(self.augment, rng)

    def placed(self, draw: Draw, shape: tuple[int, int]) -> PlacedSample:
        placement, rng = self._draw(draw, shape)
        return PlacedSample(draw.sample, placement, draw_color(self.augment, rng))

    @cached_property
    def _rng(self) -> SampleRng:
        return SampleRng(self.seed)

    def _draw(self, draw: Draw, shape: tuple[int, int]) -> _Drawn:
        """The placement for an image of ``shape``."""
        rng = self._rng.at(draw.epoch, draw.sample)
        draw_place = draw_crop if self.fit == "crop" else draw_placement
        return draw_place(shape, self.size, self.augment, rng), rng


@dataclass(frozen=True)
class ValidationView:
    """Validation samples: letterboxed, or centre-cropped; otherwise unchanged."""

    dataset: Dataset
    size: int
    fit: Fit = "letterbox"

    def load(self, index: int, buffer: BatchBuffer) -> _Item:
        fit = center_crop if self.fit == "crop" else letterbox
        sample = self.dataset.load(index, lambda *shape: decode_hint(shape, fit(shape, self.size), self.size))
        return place(sample, fit(sample.shape, self.size), self.size, buffer.add), None

    def placed(self, index: int, shape: tuple[int, int]) -> PlacedSample:
        fit = center_crop if self.fit == "crop" else letterbox
        return PlacedSample(index, fit(shape, self.size), None)


@dataclass(frozen=True)
class Collate:
    """Collates samples to a ``Batch``, with neutral fillers for labels that a sample does not have."""

    classes: Mapping[Task, Sequence[str]]
    """Class names of each of the job's tasks."""
    multi_label: bool

    def __call__(self, items: Sequence[_Item], buffer: BatchBuffer, size: int) -> Batch:
        """A batch of ``size`` pixels a side. ``buffer`` holds the images' pixels; the masks are written there."""
        canvases, colors = zip(*items, strict=True)
        side = size if "segmentation" in self.classes else 0
        return Batch(
            keys=tuple(canvas.key for canvas in canvases),
            images=torch.empty(len(canvases), 3, 0, 0, dtype=torch.uint8),
            crops=Crops.of(buffer.pixels(), [canvas.image for canvas in canvases], size),
            has={
                task: torch.tensor([getattr(canvas, task) is not None for canvas in canvases]) for task in self.classes
            },
            labels=self._labels([canvas.classification for canvas in canvases]),
            masks=_filled(buffer.masks((len(canvases), side, side)), canvases),
            color=None if colors[0] is None else torch.tensor(colors, dtype=torch.float32),
            skipped=tuple(canvas.replaces for canvas in canvases if canvas.replaces is not None),
            **_boxes(canvases),
        )

    def _labels(self, known: Sequence[int | npt.NDArray[np.float32] | None]) -> Tensor:
        if not self.multi_label:
            return torch.tensor([0 if label is None else label for label in known])
        unknown = np.full(len(self.classes.get("classification", ())), -1, dtype=np.float32)
        return torch.from_numpy(np.stack([unknown if label is None else label for label in known]))


def _filled(masks: Tensor, canvases: Sequence[Canvas]) -> Tensor:
    if masks.numel():
        for mask, canvas in zip(masks, canvases, strict=True):
            mask.fill_(IGNORE) if canvas.segmentation is None else mask.copy_(canvas.segmentation)
    return masks


def _boxes(canvases: Sequence[Canvas]) -> dict[str, Tensor]:
    known = [(i, canvas.detection) for i, canvas in enumerate(canvases) if canvas.detection is not None]
    empty = np.zeros((0, 4), dtype=np.float32)
    return {
        "boxes": torch.from_numpy(np.concatenate([empty, *(boxes.xyxy for _, boxes in known)])),
        "box_image": torch.tensor([i for i, boxes in known for _ in boxes.classes], dtype=torch.int64),
        "box_class": torch.tensor([c for _, boxes in known for c in boxes.classes.tolist()], dtype=torch.int64),
        "box_difficult": torch.tensor([d for _, boxes in known for d in boxes.difficult.tolist()], dtype=torch.bool),
    }


def training_batches(
    dataset: Dataset,
    training: TrainingSpec,
    collate: Collate,
    sampler: BatchSampler,
    *,
    start: int,
    pin: bool,
    shards: Shards | None = None,
    device_cache: DeviceCache | None = None,
) -> Iterator[Batch]:
    """This process's share of every batch from ``start`` to the job's end. Loader workers run until then.

    With ``shards``, this process prefetches remote shards of the dataset. With ``device_cache``, nothing is loaded.
    """
    view = TrainingView(dataset, training.image_size, training.augment, training.seed, training.fit)
    batches = sampler.batches(start)
    if device_cache:
        return _cached_batches(device_cache, view, batches, collate)
    uses = partial(job_shard_uses, sampler, start=start)
    indices = prefetched(batches, shards, training.cache_gib, uses, horizon=sampler.steps_per_epoch, start=start)
    return _load(view, indices, collate, workers=training.loader_workers, pin=pin)


def validation_batches(
    dataset: Dataset,
    training: TrainingSpec,
    collate: Collate,
    *,
    rank: int,
    world: int,
    pin: bool,
    shards: Shards | None = None,
    device_cache: DeviceCache | None = None,
) -> Iterator[Batch]:
    """This process's share of one pass over the split, each sample once over all processes.

    ``shards`` and ``device_cache`` are as in ``training_batches``. Later passes reuse the shards copied by the first.
    """
    size = training.eval_batch_size or 2 * training.batch_size
    mine = range(rank, len(dataset), world)
    batches = [mine[i : i + size] for i in range(0, len(mine), size)]
    view = ValidationView(dataset, training.image_size, training.fit)
    if device_cache:
        return _cached_batches(device_cache, view, batches, collate)
    uses = partial(shard_uses, batch_size=size * world, start=0)
    indices = prefetched(batches, shards, training.cache_gib, uses, horizon=len(batches))
    return _load(view, indices, collate, workers=min(training.loader_workers, len(batches)), pin=pin)


def _cached_batches(
    device_cache: DeviceCache, view: TrainingView | ValidationView, indices: Iterable[Sequence[Any]], collate: Collate
) -> Iterator[Batch]:
    for batch in indices:
        yield device_cache.batch(
            [view.placed(index, device_cache.shape) for index in batch], view.size, collate.classes
        )


def _load(
    view: _View, indices: Iterable[Sequence[Any]], collate: Collate, *, workers: int, pin: bool
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        BatchDataset(view, collate),
        batch_size=None,  # `BatchDataset` returns whole batches
        sampler=indices,
        num_workers=workers,
        pin_memory=pin,
        # Threads of storage clients and of torch do not survive a fork.
        multiprocessing_context=_forkserver() if workers else None,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_init_worker if workers else None,
        # Without its own generator a loader draws from the global one, and training would depend on it.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    with explain_worker_deaths(batches):
        for batch in batches:
            if isinstance(batch, MtlCloudError):
                raise batch
            # The worker will reuse its buffer. A pinned batch is a copy already.
            yield batch.copy() if workers and not pin else batch


@dataclass(frozen=True)
class BatchDataset(TorchDataset[Batch | MtlCloudError]):
    """Maps the indices of a batch's samples to the batch. Images are decoded one at a time."""

    view: _View
    collate: Collate
    pool: BufferPool = field(default_factory=lambda: BufferPool(_PREFETCH + 1))

    def __getitem__(self, indices: Sequence[Any]) -> Batch | MtlCloudError:
        """Returns an error as a value: raised in a worker, it would arrive with its traceback as its message."""
        try:
            return self.load(indices)
        except MtlCloudError as error:
            return error

    def load(self, indices: Sequence[Any]) -> Batch:
        buffer = self.pool.take()
        return self.collate([self.view.load(index, buffer) for index in indices], buffer, self.view.size)


def _forkserver() -> BaseContext:
    """Forks workers from a process that has only imported this module: they start fast and hold no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtl_cloud.train.data.loader"])
    return context


def _init_worker(_worker: int) -> None:
    faulthandler.enable()  # a crashing worker prints its stack
    torch.set_num_threads(1)
    logging.captureWarnings(capture=True)
