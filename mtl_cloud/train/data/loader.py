"""From a dataset to batches: decode and cut in loader workers, hand over uint8, in one deterministic order."""

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
from mtl_cloud.train.data.buffers import Room, Rooms
from mtl_cloud.train.data.crops import Cuts
from mtl_cloud.train.data.device_cache import Placed, Resident
from mtl_cloud.train.data.prefetch import copied_ahead, job_needs, needs_of
from mtl_cloud.train.data.sampler import BatchOrder, Draw
from mtl_cloud.train.data.transforms import (
    Canvas,
    Color,
    Placement,
    SampleRng,
    center_crop,
    draw_color,
    draw_crop,
    draw_placement,
    least,
    letterbox,
    place,
)
from mtl_cloud.train.data.worker_failures import deaths_explained

__all__ = ["Batches", "Collate", "TrainingView", "ValidationView", "training_batches", "validation_batches"]

_AHEAD = 4
"""Batches that a loader worker has been asked for, beyond the one that the trainer took last."""
_Item: TypeAlias = tuple[Canvas, Color | None]
"""A sample on its canvas, and its colour factors. Of the decoded image only the part in its room is kept: the next one
takes its memory, which is still in the processor's cache."""
_Drawn: TypeAlias = tuple[Placement, np.random.Generator]
"""Where a sample goes, and the generator that drew it."""


class _View(Protocol):
    """A dataset as the network sees it."""

    @property
    def size(self) -> int:
        """Side of the canvas."""
        ...

    def load(self, index: Any, room: Room) -> _Item:
        """One sample, the part of its image that is seen added to ``room``."""
        ...


@dataclass(frozen=True)
class TrainingView:
    """Samples as training sees them: placed at random and with drawn colour factors."""

    dataset: Dataset
    size: int
    augment: AugmentSpec
    seed: int
    fit: Fit = "letterbox"

    def load(self, draw: Draw, room: Room) -> _Item:
        drawn: dict[tuple[int, int], _Drawn] = {}  # asked for by who decodes, and again here

        def draw_once(shape: tuple[int, int]) -> _Drawn:
            return drawn.get(shape) or drawn.setdefault(shape, self._draw(draw, shape))

        sample = self.dataset.load(draw.sample, lambda *shape: least(shape, draw_once(shape)[0], self.size))
        placement, rng = draw_once(sample.shape)
        return place(sample, placement, self.size, room.add), draw_color(self.augment, rng)

    def placed(self, draw: Draw, shape: tuple[int, int]) -> Placed:
        placement, rng = self._draw(draw, shape)
        return Placed(draw.sample, placement, draw_color(self.augment, rng))

    @cached_property
    def _rng(self) -> SampleRng:
        return SampleRng(self.seed)

    def _draw(self, draw: Draw, shape: tuple[int, int]) -> _Drawn:
        """For an image of ``shape``."""
        rng = self._rng.at(draw.epoch, draw.sample)
        draw_place = draw_crop if self.fit == "crop" else draw_placement
        return draw_place(shape, self.size, self.augment, rng), rng


@dataclass(frozen=True)
class ValidationView:
    """Samples as validation sees them: letterboxed, or their centre; otherwise unchanged."""

    dataset: Dataset
    size: int
    fit: Fit = "letterbox"

    def load(self, index: int, room: Room) -> _Item:
        fit = center_crop if self.fit == "crop" else letterbox
        sample = self.dataset.load(index, lambda *shape: least(shape, fit(shape, self.size), self.size))
        return place(sample, fit(sample.shape, self.size), self.size, room.add), None

    def placed(self, index: int, shape: tuple[int, int]) -> Placed:
        fit = center_crop if self.fit == "crop" else letterbox
        return Placed(index, fit(shape, self.size), None)


@dataclass(frozen=True)
class Collate:
    """Samples to one ``Batch``, with neutral fillers for labels that a sample does not carry."""

    classes: Mapping[Task, Sequence[str]]
    """Of the job's tasks."""
    multi_label: bool

    def __call__(self, items: Sequence[_Item], room: Room, size: int) -> Batch:
        """For squares of ``size`` pixels a side; the images' pixels are in ``room``, and the masks go there."""
        canvases, colors = zip(*items, strict=True)
        side = size if "segmentation" in self.classes else 0
        return Batch(
            keys=tuple(canvas.key for canvas in canvases),
            images=torch.empty(len(canvases), 3, 0, 0, dtype=torch.uint8),
            cuts=Cuts.of(room.pixels(), [canvas.image for canvas in canvases], size),
            has={
                task: torch.tensor([getattr(canvas, task) is not None for canvas in canvases]) for task in self.classes
            },
            labels=self._labels([canvas.classification for canvas in canvases]),
            masks=_filled(room.masks((len(canvases), side, side)), canvases),
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
    order: BatchOrder,
    *,
    start: int,
    pin: bool,
    shards: Shards | None = None,
    resident: Resident | None = None,
) -> Iterator[Batch]:
    """This process's share of every batch from ``start`` to the job's end; loader workers live that long too.

    With ``shards``, this process copies those of the dataset that lie elsewhere ahead of the batches. A dataset that is
    ``resident`` needs no loading.
    """
    view = TrainingView(dataset, training.image_size, training.augment, training.seed, training.fit)
    batches = order.batches(start)
    if resident:
        return _cut(resident, view, batches, collate)
    needs = partial(job_needs, order, start=start)
    indices = copied_ahead(batches, shards, training.cache_gib, needs, horizon=order.steps_per_epoch, start=start)
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
    resident: Resident | None = None,
) -> Iterator[Batch]:
    """This process's share of one pass over the split, each sample once over all processes.

    ``shards`` and ``resident`` as in ``training_batches``: the copies of one pass serve all that follow.
    """
    size = training.eval_batch_size or 2 * training.batch_size
    mine = range(rank, len(dataset), world)
    batches = [mine[i : i + size] for i in range(0, len(mine), size)]
    view = ValidationView(dataset, training.image_size, training.fit)
    if resident:
        return _cut(resident, view, batches, collate)
    needs = partial(needs_of, batch_size=size * world, start=0)
    indices = copied_ahead(batches, shards, training.cache_gib, needs, horizon=len(batches))
    return _load(view, indices, collate, workers=min(training.loader_workers, len(batches)), pin=pin)


def _cut(
    resident: Resident, view: TrainingView | ValidationView, indices: Iterable[Sequence[Any]], collate: Collate
) -> Iterator[Batch]:
    for some in indices:
        yield resident.batch([view.placed(index, resident.shape) for index in some], view.size, collate.classes)


def _load(
    view: _View, indices: Iterable[Sequence[Any]], collate: Collate, *, workers: int, pin: bool
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        Batches(view, collate),
        batch_size=None,  # an index of `Batches` is a batch
        sampler=indices,
        num_workers=workers,
        pin_memory=pin,
        # Threads of storage clients and of torch do not survive a fork.
        multiprocessing_context=_forkserver() if workers else None,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_one_thread if workers else None,
        # Without its own generator a loader draws from the global one, and training would depend on it.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    with deaths_explained(batches):
        for batch in batches:
            if isinstance(batch, MtlCloudError):
                raise batch
            # Its worker will take the same room again. What is pinned is a copy already.
            yield batch.copy() if workers and not pin else batch


@dataclass(frozen=True)
class Batches(TorchDataset[Batch | MtlCloudError]):
    """Batches by their samples. Images are decoded one at a time."""

    view: _View
    collate: Collate
    rooms: Rooms = field(default_factory=lambda: Rooms(_AHEAD + 1))

    def __getitem__(self, indices: Sequence[Any]) -> Batch | MtlCloudError:
        """An error is handed over as a value: raised in a worker, it would come out with its traceback as message."""
        try:
            return self.load(indices)
        except MtlCloudError as error:
            return error

    def load(self, indices: Sequence[Any]) -> Batch:
        room = self.rooms.take()
        return self.collate([self.view.load(index, room) for index in indices], room, self.view.size)


def _forkserver() -> BaseContext:
    """Workers forked from a process that has imported torch and nothing else: they start at once, without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtl_cloud.train.data.loader"])
    return context


def _one_thread(_worker: int) -> None:
    faulthandler.enable()  # what crashes a worker leaves its trace
    torch.set_num_threads(1)
    logging.captureWarnings(capture=True)
