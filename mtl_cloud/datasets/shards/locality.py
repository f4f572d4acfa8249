"""Which of a dataset's samples lie together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import Dataset
from mtl_cloud.datasets.shards import FileEntry, RangeReader, ShardDataset
from mtl_cloud.datasets.wrappers import JointDataset, Selection, SkippingDataset

__all__ = ["Shards", "end_to_end", "shards_of"]


class Shards(NamedTuple):
    """The shards of a dataset, however it is put together."""

    numbers: npt.NDArray[np.int64]
    """[samples] index into ``files``; -1 for a sample that lies in no shard."""
    files: Sequence[tuple[FileEntry, RangeReader]]


def shards_of(dataset: Dataset) -> Shards:
    """Where each sample lies."""
    if isinstance(dataset, JointDataset):
        return end_to_end([shards_of(part) for part in dataset.datasets])
    if isinstance(dataset, Selection):
        found = shards_of(dataset.dataset)
        return Shards(found.numbers[np.asarray(dataset.indices, dtype=np.int64)], found.files)
    if isinstance(dataset, SkippingDataset):
        return shards_of(dataset.dataset)
    if isinstance(dataset, ShardDataset):
        return Shards(dataset.rows["shard"].astype(np.int64), [(file, dataset.reader) for file in dataset.shards])
    return Shards(np.full(len(dataset), -1), ())


def end_to_end(parts: Sequence[Shards]) -> Shards:
    """Of datasets whose samples are counted on from one to the next."""
    files: list[tuple[FileEntry, RangeReader]] = []
    numbers = []
    for part in parts:
        numbers.append(np.where(part.numbers < 0, -1, part.numbers + len(files)))
        files += part.files
    return Shards(np.concatenate(numbers), files)
