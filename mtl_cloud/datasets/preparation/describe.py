"""Describe a prepared dataset: counts, sizes, classes, and a sheet of samples."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from mtl_cloud.datasets.base import Dataset, DatasetInfo, Sample
from mtl_cloud.datasets.shards.format import DatasetManifest
from mtl_cloud.datasets.shards.reader import ShardDataset, open_shards
from mtl_cloud.tasks import TASKS, Task

__all__ = ["SplitSummary", "sample_sheet", "summarise"]

_TILE = 128
_CAPTION = 14
_COLUMNS = 8


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers."""

    samples: int
    shards: int
    bytes: int
    """Total of the shards."""
    pixels: Mapping[str, int]
    """Minimum, median and maximum of width and height: ``width_min`` … ``height_max``."""
    labelled: Mapping[Task, int]
    """Samples that have the label."""
    per_class: Mapping[Task, Sequence[int]]
    """Images of each class (classification), boxes of each class (detection)."""


def summarise(uri: str, manifest: DatasetManifest) -> dict[str, SplitSummary]:
    """Summaries of all splits, from the index alone. Raises ``DatasetError`` and ``StorageError``."""
    return {split: _summary(open_shards(uri, split)) for split in manifest.splits}


def _summary(dataset: ShardDataset) -> SplitSummary:
    rows = dataset.rows
    return SplitSummary(
        samples=len(rows),
        shards=len(dataset.shards),
        bytes=sum(shard.size for shard in dataset.shards),
        pixels={
            f"{side}_{name}": int(of(rows[side]))
            for side in ("width", "height")
            for name, of in (("min", np.min), ("median", np.median), ("max", np.max))
        },
        labelled={task: int((rows["tasks"] >> TASKS.index(task) & 1).sum()) for task in dataset.info.tasks},
        per_class=dict(_per_class(dataset)),
    )


def _per_class(dataset: ShardDataset) -> Iterator[tuple[Task, list[int]]]:
    classes, rows = dataset.info.classes, dataset.rows
    if "classification" in classes:
        labels = rows["classification"][rows["tasks"] & 1 == 1]
        counts = (
            (labels == 1).sum(axis=0) if dataset.info.multi_label else _count(labels, len(classes["classification"]))
        )
        yield "classification", counts.tolist()
    if "detection" in classes:
        yield "detection", _count(dataset.boxes["class"], len(classes["detection"])).tolist()


def _count(indices: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(indices, minlength=classes)


def sample_sheet(dataset: Dataset, *, samples: int = 40) -> bytes:
    """A PNG of ``samples`` images spread over the split, each with its classes, boxes and mask."""
    chosen = sorted({i * len(dataset) // samples for i in range(samples)})
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + _CAPTION)), "white")
    for place, index in enumerate(chosen):
        sample = dataset[index]
        corner = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _CAPTION)
        ImageDraw.Draw(sheet).text((corner[0] + 2, corner[1] + 1), _caption(sample, dataset.info)[:20], fill="black")
        sheet.paste(_tile(sample), (corner[0], corner[1] + _CAPTION))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _caption(sample: Sample, info: DatasetInfo) -> str:
    if sample.classification is None:
        return sample.key
    names = info.classes["classification"]
    present = np.flatnonzero(np.asarray(sample.classification) == 1) if info.multi_label else [sample.classification]
    return ", ".join(names[int(i)] for i in present)


def _tile(sample: Sample) -> Image.Image:
    image = Image.fromarray(sample.image)
    if sample.segmentation is not None:
        masked = Image.fromarray((sample.segmentation > 0).astype(np.uint8) * 110)
        image = Image.composite(Image.new("RGB", image.size, "lime"), image, masked)
    draw = ImageDraw.Draw(image)
    for box in sample.detection.xyxy.tolist() if sample.detection else ():
        left, top, right, bottom = box
        draw.rectangle((left, top, right - 1, bottom - 1), outline="red", width=max(1, max(image.size) // _TILE))
    return ImageOps.pad(image, (_TILE, _TILE), color="white")
