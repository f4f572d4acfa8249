"""A split of a prepared dataset: any sample by one ranged read, from a folder or an object store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import Boxes, DatasetInfo, HintFor, Sample, full_decode
from mtl_cloud.datasets.files import decode_mask, decode_shrunk, local_path
from mtl_cloud.datasets.shards.cache import CachedReader, RangeReader, ShardCache, default_folder
from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.datasets.shards.format import MANIFEST, DatasetManifest, FileEntry, Rows, tasks_of
from mtl_cloud.datasets.shards.index_table import Table, open_table
from mtl_cloud.errors import DatasetError, NotFoundError, StorageError
from mtl_cloud.storage import Storage, open_storage
from mtl_cloud.tasks import TASKS, Task

__all__ = ["Extent", "ShardDataset", "is_prepared", "is_remote", "open_shards", "read_manifest"]

_READS = 9
"""Of a sample that arrives damaged, each time elsewhere: then it is the machine's fault and no bad sample."""


class Extent(NamedTuple):
    """Where a sample's bytes lie."""

    shard: int
    """Index into ``ShardDataset.shards``."""
    offset: int
    size: int


@dataclass(frozen=True)
class StorageReader:
    """One ranged request a read."""

    storage: Storage

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        try:
            data = self.storage.read_range(shard.key, offset, size)
        except NotFoundError as error:
            raise _damaged(f"{self.storage.url}/{shard.key}", "the shard is not there") from error
        if len(data) != size:
            raise _damaged(f"{self.storage.url}/{shard.key}", f"the shard ends at byte {offset + len(data)}")
        return data

    read_again = read


@dataclass(frozen=True)
class ShardDataset:
    """The samples of a split under the indices, keys and labels that the plain dataset has for them.

    Every image and mask is checked against its CRC64NVME; one that does not fit is read again, until it fits or comes
    the same twice: then it is a bad sample. A copy for a loader worker carries no rows: each process maps the index's
    file into memory.
    """

    url: str
    """Of the prepared dataset."""
    info: DatasetInfo
    samples: int
    shards: tuple[FileEntry, ...]
    table: Table
    """A row a sample: ``format.row_dtype``."""
    box_table: Table | None
    reader: RangeReader
    wanted: frozenset[Task] = field(default=frozenset(TASKS))
    """Labels that are read and decoded, of those that there are."""

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        data = self._fetch(index)
        for _ in range(_READS):
            try:
                return self.decode(index, data, hint_for)
            except _ChecksumError:
                before, data = data, self._fetch_again(index)
                if data == before:  # damaged where it lies, and not on its way here
                    raise
        raise StorageError(
            f"{self.where(index)}: arrived damaged {_READS} times, and never the same",
            hint="it is not the dataset: this machine's memory, network or disk damages what it reads",
        )

    def key(self, index: int) -> str:
        return _key(self.rows[index])

    def labels(self, index: int) -> frozenset[Task]:
        return self._labels(self.rows[index])

    def narrowed(self, tasks: frozenset[Task]) -> ShardDataset:
        """The same samples, of whose labels only ``tasks`` are read and decoded."""
        return replace(self, wanted=self.wanted & tasks)

    @property
    def rows(self) -> Rows:
        return self.table.rows

    def extent(self, index: int) -> Extent:
        """The bytes that ``decode`` wants: the image, and the mask after it where that is wanted."""
        row = self.rows[index]
        offset = int(row["offset"])
        if "segmentation" in self._labels(row):
            return Extent(int(row["shard"]), offset, int(row["mask_offset"]) + int(row["mask_size"]) - offset)
        return Extent(int(row["shard"]), offset, int(row["size"]))

    def read(self, index: int) -> bytes:
        """The encoded image, as it is stored. Raises ``DatasetError`` and ``StorageError``."""
        data = self.narrowed(frozenset())._fetch(index)  # noqa: SLF001  # a copy of itself
        return self._image_bytes(self.rows[index], data)

    def decode(self, index: int, data: bytes | memoryview, hint_for: HintFor = full_decode) -> Sample:
        """The sample that ``data``, the bytes of its extent, hold. Raises ``DatasetError``, also for damaged ones."""
        row = self.rows[index]  # once: each look at the table takes as long as a field of a row
        labels = self._labels(row)
        image, shape = decode_shrunk(self._image_bytes(row, data), self._where(row), hint_for)
        return Sample(
            key=_key(row),
            image=image,
            classification=self._classification(row) if "classification" in labels else None,
            detection=self._boxes(row) if "detection" in labels else None,
            segmentation=self._mask(row, data) if "segmentation" in labels else None,
            shrunk_from=shape,
        )

    def where(self, index: int) -> str:
        """The shard and the sample in it, for people."""
        return self._where(self.rows[index])

    def _fetch(self, index: int) -> bytes:
        shard, offset, size = self.extent(index)
        return self.reader.read(self.shards[shard], offset, size)

    def _fetch_again(self, index: int) -> bytes:
        shard, offset, size = self.extent(index)
        return self.reader.read_again(self.shards[shard], offset, size)

    def _labels(self, row: np.void) -> frozenset[Task]:
        return tasks_of(int(row["tasks"])) & self.wanted

    def _where(self, row: np.void) -> str:
        return f"{self.url}/{self.shards[row['shard']].key}: {_key(row)}"

    def _image_bytes(self, row: np.void, data: bytes | memoryview) -> bytes:
        return self._checked(row, bytes(data[: int(row["size"])]), int(row["crc64nvme"]))

    def _mask(self, row: np.void, data: bytes | memoryview) -> npt.NDArray[np.uint8]:
        start = int(row["mask_offset"]) - int(row["offset"])
        encoded = bytes(data[start : start + int(row["mask_size"])])
        return decode_mask(self._checked(row, encoded, int(row["mask_crc64nvme"])), self._where(row))

    def _checked(self, row: np.void, data: bytes, checksum: int) -> bytes:
        if crc64nvme(data) != checksum:
            raise _ChecksumError(
                f"{self._where(row)}: damaged: its CRC64NVME is not {checksum:016x}", hint=_verify(self.url)
            )
        return data

    def _classification(self, row: np.void) -> int | npt.NDArray[np.float32]:
        label = row["classification"]
        return label.astype(np.float32) if self.info.multi_label else int(label)

    def _boxes(self, row: np.void) -> Boxes:
        first, count = int(row["first_box"]), int(row["boxes"])
        rows = self.boxes[first : first + count]
        return Boxes(rows["xyxy"].copy(), rows["class"].astype(np.int64), rows["difficult"].astype(np.bool_))

    @cached_property
    def boxes(self) -> Rows:
        """[all boxes of the split] ``format.BOX``."""
        if self.box_table is None:
            raise DatasetError(f"{self.url}: boxes without their file in the manifest", hint=_verify(self.url))
        return self.box_table.rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "boxes"}


def _key(row: np.void) -> str:
    return os.fsdecode(row["key"])


class _ChecksumError(DatasetError):
    """Bytes are not those that were written."""


def is_prepared(uri: str) -> bool:
    """Does ``uri`` name a prepared dataset? What does not lie on this machine is taken for one."""
    return is_remote(uri) or (local_path(uri) / MANIFEST).is_file()


def is_remote(uri: str) -> bool:
    """Does ``uri`` name a storage other than a folder of this machine?"""
    return "://" in uri and not uri.startswith("file:")


def read_manifest(storage: Storage) -> DatasetManifest:
    """The manifest of the dataset in ``storage``. Raises ``DatasetError`` where there is none or it is damaged."""
    try:
        data = storage.read(MANIFEST)
    except NotFoundError as error:
        raise DatasetError(
            f"{storage.url}: no prepared dataset there (no {MANIFEST})",
            hint="make one of the original archives: mtl-cloud data prepare; these themselves are read from this "
            "machine's disks only",
        ) from error
    return DatasetManifest.decode(data, source=f"{storage.url}/{MANIFEST}")


def open_shards(
    uri: str,
    split: str,
    *,
    name: str | None = None,
    cache: Path | None = None,
    connect: Callable[[str], Storage] = open_storage,
) -> ShardDataset:
    """A split of the prepared dataset at a folder or URL, which must be of the kind ``name``.

    The index of one that does not lie on this machine is kept in the folder ``cache`` (default: the user's); it is
    opened and read through ``connect(uri)``.

    Raises
    ------
    DatasetError
        There is no prepared dataset, it is another one, has no such split, or is damaged.
    StorageError
        The storage does not answer.
    """
    storage = connect(uri) if is_remote(uri) else open_storage(local_path(uri))
    manifest = read_manifest(storage)
    if name not in {None, manifest.name}:
        raise DatasetError(
            f"{storage.url}: this is {manifest.name} prepared, not {name}", hint="correct `name:` or `uri:`"
        )
    split = split if split in manifest.splits else manifest.aliases.get(split, split)
    if split not in manifest.splits:
        raise DatasetError(
            f"{storage.url}: no split {split!r} was prepared", hint=f"there are {', '.join(manifest.splits)}"
        )
    found = manifest.splits[split]
    reader = StorageReader(storage)
    return ShardDataset(
        url=storage.url,
        info=manifest.info(split),
        samples=found.samples,
        shards=found.shards,
        table=open_table(storage, found.index, cache),
        box_table=open_table(storage, found.boxes, cache) if found.boxes else None,
        reader=CachedReader(reader, ShardCache(default_folder(os.environ))) if is_remote(uri) else reader,
    )


def _damaged(where: str, what: str) -> DatasetError:
    return DatasetError(f"{where}: {what}", hint=_verify(where.rpartition("/")[0]))


def _verify(url: str) -> str:
    return f"see what else is damaged: mtl-cloud data verify {url}; then prepare it again"
