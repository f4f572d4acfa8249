"""From a dataset to batches: decode and place in loader workers, hand over uint8, in one deterministic order."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtl_cloud.datasets.base import IGNORE, Dataset, Sample
from mtl_cloud.datasets.locality import Shards
from mtl_cloud.errors import MtlCloudError
from mtl_cloud.spec.job import AugmentSpec, Fit, TrainingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.batch import Batch
from mtl_cloud.train.order import BatchOrder, Draw
from mtl_cloud.train.read_ahead import ReadAhead, copies_limit, job_needs
from mtl_cloud.train.transforms import (
    Canvas,
    Placement,
    center_crop,
    draw_color,
    draw_crop,
    draw_placement,
    letterbox,
    place,
    sample_rng,
    shrinkable,
)
from mtl_cloud.train.workers import deaths_explained

__all__ = ["Collate", "TrainingView", "ValidationView", "training_batches", "validation_batches"]

Item = tuple[Sample, Canvas, "np.ndarray | None"]


@dataclass(frozen=True)
class TrainingView(TorchDataset[Item]):
    """Samples as training sees them: placed at random and with drawn colour factors."""

    dataset: Dataset
    size: int
    augment: AugmentSpec
    seed: int
    fit: Fit = "letterbox"

    def __getitem__(self, draw: Draw) -> Item:
        placed = cache(partial(self._placement, draw))  # asked for by who decodes, and again here
        sample = self.dataset.load(draw.sample, lambda *shape: shrinkable(shape, placed(shape)[0]))
        placement, rng = placed(sample.shape)
        return sample, place(sample, placement, self.size), draw_color(self.augment, rng)

    def _placement(self, draw: Draw, shape: tuple[int, int]) -> tuple[Placement, np.random.Generator]:
        """Where an image of ``shape`` goes in this draw, and the generator that drew it."""
        rng = sample_rng(self.seed, draw.epoch, draw.sample)
        draw_place = draw_crop if self.fit == "crop" else draw_placement
        return draw_place(shape, self.size, self.augment, rng), rng


@dataclass(frozen=True)
class ValidationView(TorchDataset[Item]):
    """Samples as validation sees them: letterboxed, or their centre; otherwise unchanged."""

    dataset: Dataset
    size: int
    fit: Fit = "letterbox"

    def __getitem__(self, index: int) -> Item:
        fit = center_crop if self.fit == "crop" else letterbox
        sample = self.dataset.load(index, lambda *shape: shrinkable(shape, fit(shape, self.size)))
        return sample, place(sample, fit(sample.shape, self.size), self.size), None


@dataclass(frozen=True)
class Collate:
    """Samples to one ``Batch``, with neutral fillers for labels that a sample does not carry."""

    classes: Mapping[Task, Sequence[str]]
    """Of the job's tasks."""
    multi_label: bool

    def __call__(self, items: list[Item]) -> Batch:
        samples, canvases, colors = zip(*items, strict=True)
        images = torch.stack([canvas.image for canvas in canvases])
        return Batch(
            keys=tuple(sample.key for sample in samples),
            images=images,
            has=self._has(samples),
            labels=self._labels(samples),
            masks=torch.stack([_mask(canvas, images.shape[-1]) for canvas in canvases]),
            color=None if colors[0] is None else torch.from_numpy(np.stack(colors)),
            skipped=tuple(sample.replaces for sample in samples if sample.replaces is not None),
            **_boxes(canvases),
        )

    def _has(self, samples: Sequence[Sample]) -> dict[Task, Tensor]:
        return {task: torch.tensor([getattr(sample, task) is not None for sample in samples]) for task in self.classes}

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        if not self.multi_label:
            return torch.tensor([0 if s.classification is None else s.classification for s in samples])
        unknown = np.full(len(self.classes.get("classification", ())), -1, dtype=np.float32)
        return torch.from_numpy(np.stack([unknown if s.classification is None else s.classification for s in samples]))


def _mask(canvas: Canvas, size: int) -> Tensor:
    return torch.full((size, size), IGNORE, dtype=torch.uint8) if canvas.mask is None else canvas.mask


def _boxes(canvases: Sequence[Canvas]) -> dict[str, Tensor]:
    known = [(i, canvas.boxes) for i, canvas in enumerate(canvases) if canvas.boxes is not None]
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
    order: BatchOrder,
    *,
    start: int,
    pin: bool,
    shards: Shards | None = None,
) -> Iterator[Batch]:
    """This process's share of every batch from ``start`` to the job's end; loader workers live that long too.

    With ``shards``, this process copies those of the dataset that lie elsewhere ahead of the batches.
    """
    view = TrainingView(dataset, training.image_size, training.augment, training.seed, training.fit)
    batches = order.batches(start)
    limit = copies_limit(shards, training.cache_gib) if shards else 0
    if shards and limit:
        needs = job_needs(order, shards.numbers, start)
        batches = ReadAhead(shards, needs, limit, order.steps_per_epoch, start).follow(batches)
    return _load(view, batches, collate, workers=training.loader_workers, pin=pin)


def validation_batches(
    dataset: Dataset, training: TrainingSpec, collate: Collate, *, rank: int, world: int, pin: bool
) -> Iterator[Batch]:
    """This process's share of one pass over the split, each sample once over all processes."""
    size = training.eval_batch_size or 2 * training.batch_size
    mine = range(rank, len(dataset), world)
    batches = [list(mine[i : i + size]) for i in range(0, len(mine), size)]
    view = ValidationView(dataset, training.image_size, training.fit)
    return _load(view, batches, collate, workers=min(training.loader_workers, len(batches)), pin=pin)


def _load(view: TorchDataset[Item], indices: object, collate: Collate, *, workers: int, pin: bool) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Reporting(view),
        batch_sampler=indices,  # type: ignore[arg-type]  # an iterable of index lists serves
        collate_fn=partial(_collate_or_report, collate),
        num_workers=workers,
        pin_memory=pin,
        # Threads of storage clients and of torch do not survive a fork.
        multiprocessing_context=_forkserver() if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
        # Without its own generator a loader draws from the global one, and training would depend on it.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    with deaths_explained(batches):
        for batch in batches:
            if isinstance(batch, MtlCloudError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Reporting(TorchDataset[Item | MtlCloudError]):
    """Hands an error over as a value: raised in a worker, it would come out with the worker's traceback as message."""

    view: TorchDataset[Item]

    def __getitem__(self, index: Any) -> Item | MtlCloudError:
        try:
            return self.view[index]
        except MtlCloudError as error:
            return error


def _collate_or_report(collate: Collate, items: list[Item | MtlCloudError]) -> Batch | MtlCloudError:
    samples: list[Item] = []
    for item in items:
        if isinstance(item, MtlCloudError):
            return item
        samples.append(item)
    return collate(samples)


def _forkserver() -> BaseContext:
    """Workers forked from a process that has imported torch and nothing else: they start at once, without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtl_cloud.train.data"])
    return context


def _one_thread(_worker: int) -> None:
    faulthandler.enable()  # what crashes a worker leaves its trace
    torch.set_num_threads(1)
    logging.captureWarnings(capture=True)
