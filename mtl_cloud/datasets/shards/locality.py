"""Map the samples of a dataset to their shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import Dataset
from mtl_cloud.datasets.shards import FileEntry, RangeReader, ShardDataset
from mtl_cloud.datasets.wrappers import JointDataset, Selection, SkippingDataset

__all__ = ["Shards", "concat_shards", "shards_of"]


class Shards(NamedTuple):
    """The shards of a dataset, wrapped or joined."""

    numbers: npt.NDArray[np.int64]
    """[samples] index into ``files``; -1 for a sample that is in no shard."""
    files: Sequence[tuple[FileEntry, RangeReader]]


def shards_of(dataset: Dataset) -> Shards:
    """The shards of ``dataset``."""
    if isinstance(dataset, JointDataset):
        return concat_shards([shards_of(part) for part in dataset.datasets])
    if isinstance(dataset, Selection):
        found = shards_of(dataset.dataset)
        return Shards(found.numbers[np.asarray(dataset.indices, dtype=np.int64)], found.files)
    if isinstance(dataset, SkippingDataset):
        return shards_of(dataset.dataset)
    if isinstance(dataset, ShardDataset):
        return Shards(dataset.rows["shard"].astype(np.int64), [(file, dataset.reader) for file in dataset.shards])
    return Shards(np.full(len(dataset), -1), ())


def concat_shards(parts: Sequence[Shards]) -> Shards:
    """The shards of concatenated datasets."""
    files: list[tuple[FileEntry, RangeReader]] = []
    numbers = []
    for part in parts:
        numbers.append(np.where(part.numbers < 0, -1, part.numbers + len(files)))
        files += part.files
    return Shards(np.concatenate(numbers), files)
