"""Read a split of a prepared dataset: one range read per sample, from a folder or an object store."""

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
from mtl_cloud.datasets.files import decode_mask, decode_scaled, local_path
from mtl_cloud.datasets.shards.cache import CachedReader, RangeReader, ShardCache, default_folder
from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.datasets.shards.format import MANIFEST, DatasetManifest, FileEntry, Rows, tasks_of
from mtl_cloud.datasets.shards.index_table import Table, open_table
from mtl_cloud.errors import DatasetError, NotFoundError, StorageError
from mtl_cloud.storage import Storage, open_storage
from mtl_cloud.tasks import TASKS, Task

__all__ = ["Extent", "ShardDataset", "is_prepared", "is_remote", "open_shards", "read_manifest"]

_MAX_READS = 9
"""If a sample arrives damaged in a different way each time, the machine is at fault and not the sample."""


class Extent(NamedTuple):
    """The byte range of a sample."""

    shard: int
    """Index into ``ShardDataset.shards``."""
    offset: int
    size: int


@dataclass(frozen=True)
class StorageReader:
    """Reads shards from a storage, one range request per read."""

    storage: Storage

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        try:
            data = self.storage.read_range(shard.key, offset, size)
        except NotFoundError as error:
            raise _damaged(f"{self.storage.url}/{shard.key}", "the shard is missing") from error
        if len(data) != size:
            raise _damaged(f"{self.storage.url}/{shard.key}", f"the shard ends at byte {offset + len(data)}")
        return data

    read_again = read


@dataclass(frozen=True)
class ShardDataset:
    """The samples of a split, with the same indices, keys and labels as in the plain dataset.

    Every image and mask is checked against its CRC64NVME. On a mismatch it is read again, until it matches or the same
    bytes arrive twice: then it is a bad sample. A pickle for a loader worker holds no rows: each process maps the index
    file into memory.
    """

    url: str
    """URL of the prepared dataset."""
    info: DatasetInfo
    samples: int
    shards: tuple[FileEntry, ...]
    table: Table
    """One row per sample: ``format.row_dtype``."""
    box_table: Table | None
    reader: RangeReader
    wanted: frozenset[Task] = field(default=frozenset(TASKS))
    """Labels to read and decode, if there are any."""

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        data = self._fetch(index)
        for _ in range(_MAX_READS):
            try:
                return self.decode(index, data, hint_for)
            except _ChecksumError:
                before, data = data, self._fetch_again(index)
                if data == before:  # damaged in the storage, not in transit
                    raise
        raise StorageError(
            f"{self.where(index)}: arrived damaged {_MAX_READS} times, each time differently",
            hint="the dataset is intact: this machine's memory, network or disk corrupts data",
        )

    def key(self, index: int) -> str:
        return _key(self.rows[index])

    def labels(self, index: int) -> frozenset[Task]:
        return self._labels(self.rows[index])

    def with_tasks(self, tasks: frozenset[Task]) -> ShardDataset:
        """The same samples; only labels of ``tasks`` are read and decoded."""
        return replace(self, wanted=self.wanted & tasks)

    @property
    def rows(self) -> Rows:
        return self.table.rows

    def extent(self, index: int) -> Extent:
        """The bytes that ``decode`` needs: the image, and the mask after it if that is wanted."""
        row = self.rows[index]
        offset = int(row["offset"])
        if "segmentation" in self._labels(row):
            return Extent(int(row["shard"]), offset, int(row["mask_offset"]) + int(row["mask_size"]) - offset)
        return Extent(int(row["shard"]), offset, int(row["size"]))

    def read(self, index: int) -> bytes:
        """The encoded image as stored. Raises ``DatasetError`` and ``StorageError``."""
        data = self.with_tasks(frozenset())._fetch(index)  # noqa: SLF001  # its own class
        return self._image_bytes(self.rows[index], data)

    def decode(self, index: int, data: bytes | memoryview, hint_for: HintFor = full_decode) -> Sample:
        """Decode a sample from ``data``, the bytes of its extent. Raises ``DatasetError`` if it is damaged."""
        row = self.rows[index]  # once: reading a row takes as long as reading a field of it
        labels = self._labels(row)
        image, shape = decode_scaled(self._image_bytes(row, data), self._where(row), hint_for)
        return Sample(
            key=_key(row),
            image=image,
            classification=self._classification(row) if "classification" in labels else None,
            detection=self._boxes(row) if "detection" in labels else None,
            segmentation=self._mask(row, data) if "segmentation" in labels else None,
            stored_shape=shape,
        )

    def where(self, index: int) -> str:
        """The shard and the sample in it, for messages."""
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
            raise DatasetError(f"{self.url}: the manifest names no file of boxes", hint=_verify(self.url))
        return self.box_table.rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "boxes"}


def _key(row: np.void) -> str:
    return os.fsdecode(row["key"])


class _ChecksumError(DatasetError):
    """Bytes do not match their checksum."""


def is_prepared(uri: str) -> bool:
    """Whether ``uri`` names a prepared dataset. A remote one is assumed to be."""
    return is_remote(uri) or (local_path(uri) / MANIFEST).is_file()


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names a storage other than a local folder."""
    return "://" in uri and not uri.startswith("file:")


def read_manifest(storage: Storage) -> DatasetManifest:
    """The manifest of the dataset in ``storage``. Raises ``DatasetError`` if it is missing or damaged."""
    try:
        data = storage.read(MANIFEST)
    except NotFoundError as error:
        raise DatasetError(
            f"{storage.url}: no prepared dataset there (no {MANIFEST})",
            hint="make one from the original archives: mtl-cloud data prepare; archives themselves can be read from "
            "local disks only",
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
    """A split of the prepared dataset at a folder or URL; ``name``, if given, is the expected dataset.

    A remote dataset is read through ``connect(uri)``, and its index copied to the folder ``cache`` (default: the
    user's).

    Raises
    ------
    DatasetError
        There is no prepared dataset, it is not ``name``, has no such split, or is damaged.
    StorageError
        The storage does not answer.
    """
    storage = connect(uri) if is_remote(uri) else open_storage(local_path(uri))
    manifest = read_manifest(storage)
    if name not in {None, manifest.name}:
        raise DatasetError(
            f"{storage.url}: this is prepared {manifest.name}, not {name}", hint="correct `name:` or `uri:`"
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
    return f"find all damaged files with mtl-cloud data verify {url}; then prepare it again"
