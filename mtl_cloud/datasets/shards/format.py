"""File format of a prepared dataset.

::

    manifest.json           metadata, digest, and every other file with size and CRC64NVME; written last
    train-000000.tar, …     shards: POSIX (ustar) tars in webdataset's naming, a sample's files in sequence
    train.index.npy         one row per sample: its position, checksum, size in pixels and labels
    train.boxes.npy         one row per box, if boxes are labelled

A sample's files in a shard: the original image (``.jpg``, ``.png`` or ``.ppm``), then its mask (``.seg.png``), then its
labels as text: the class index (``.cls``), or sets of classes and boxes by name (``.json``). So image and mask are one
range of bytes, and other tools can read a shard without the index.

Rows have the order of the plain dataset. Shards hold the samples in one random order, the same in every preparation, so
that a few shards are a fair sample of the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import TASKS, Task

__all__ = [
    "BOX",
    "MANIFEST",
    "DatasetManifest",
    "FileEntry",
    "Finding",
    "Rows",
    "SplitManifest",
    "row_dtype",
    "task_bits",
    "tasks_of",
]

MANIFEST = "manifest.json"
Rows: TypeAlias = npt.NDArray[np.void]
BOX = np.dtype([("xyxy", "<f4", (4,)), ("class", "<u2"), ("difficult", "u1")])
"""The dtype of ``boxes.npy``; fields as in ``Boxes``."""


def row_dtype(info: DatasetInfo, key_bytes: int) -> np.dtype[np.void]:
    """The dtype of ``index.npy``. Integers are little-endian; offsets count from the start of the shard."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
        ("key", f"S{key_bytes}"),  # UTF-8
        ("shard", "<u4"),
        ("offset", "<u4"),  # of the image
        ("size", "<u4"),
        ("crc64nvme", "<u8"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("tasks", "u1"),  # bit i: the sample has the label TASKS[i]
    ]
    if "classification" in info.classes and info.multi_label:
        fields.append(("classification", "i1", (len(info.classes["classification"]),)))  # 1, 0, -1: as in `Sample`
    elif "classification" in info.classes:
        fields.append(("classification", "<u2"))
    if "detection" in info.classes:
        fields += [("first_box", "<u4"), ("boxes", "<u2")]  # rows of boxes.npy
    if "segmentation" in info.classes:
        fields += [("mask_offset", "<u4"), ("mask_size", "<u4"), ("mask_crc64nvme", "<u8")]
    return np.dtype(fields)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a prepared dataset."""

    key: str
    size: int
    crc64nvme: str
    """16 hexadecimal digits."""

    @classmethod
    def of(cls, key: str, data: bytes) -> FileEntry:
        return cls(key, len(data), f"{crc64nvme(data):016x}")

    def fits(self, data: bytes) -> bool:
        """Whether ``data`` has the recorded size and checksum."""
        return len(data) == self.size and f"{crc64nvme(data):016x}" == self.crc64nvme


@dataclass(frozen=True, slots=True)
class Finding:
    """A remark of the preparation about one sample."""

    key: str
    what: str


class SplitManifest(_Part):
    """One split."""

    samples: int
    digest: str
    """SHA-256 of the samples' digests in the order of the rows; a sample's is over the names and bytes of its files."""
    shards: tuple[FileEntry, ...]
    index: FileEntry
    boxes: FileEntry | None = None
    left_out: tuple[Finding, ...] = ()
    """Bad samples of the original that are not in the shards."""
    notes: tuple[Finding, ...] = ()
    """Unusual samples in the shards: CMYK, not a JPEG, the same bytes as another's."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return (*self.shards, self.index, *([self.boxes] if self.boxes else ()))


class DatasetManifest(_Part):
    """``manifest.json``. A dataset is complete once it is written."""

    schema_version: Literal[1] = 1
    name: str
    multi_label: bool
    classes: dict[Task, tuple[str, ...]]
    splits: dict[str, SplitManifest]
    aliases: dict[str, str] = {}
    """Other name -> split (``val`` -> ``test`` for CIFAR-10)."""
    digest: str = ""
    """See ``sealed``."""
    plan: str = ""
    """Fingerprint of the original files and the options: the same plan writes the same bytes."""

    def sealed(self) -> Self:
        """A copy with its digest: over the samples, their labels and the class names.

        It does not cover the division into shards, so the same data has the same digest for any shard size.
        """
        return self.model_copy(update={"digest": self._content_digest()})

    def _content_digest(self) -> str:
        splits = {name: split.digest for name, split in self.splits.items()}
        content = [self.name, self.multi_label, self.classes, splits]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, *, source: str) -> Self:
        """Raises ``DatasetError`` if ``data`` is not a manifest, has an unknown version, or is damaged."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DatasetError(
                f"{source}: not the manifest of a prepared dataset, or of another version ({where}: {first['msg']})",
                hint="read it with the mtl-cloud that wrote it, or prepare the dataset again",
            ) from error
        if manifest.digest != manifest._content_digest():  # noqa: SLF001  # its own class
            raise DatasetError(f"{source}: damaged: its digest does not match its content", hint="prepare it again")
        return manifest

    def info(self, split: str) -> DatasetInfo:
        return DatasetInfo(self.name, split, self.ordered_classes(), self.multi_label, self.digest)

    def ordered_classes(self) -> Mapping[Task, tuple[str, ...]]:
        return {task: self.classes[task] for task in TASKS if task in self.classes}


def task_bits(tasks: frozenset[Task]) -> int:
    """The field ``tasks`` of a row."""
    return sum(1 << i for i, task in enumerate(TASKS) if task in tasks)


@cache
def tasks_of(bits: int) -> frozenset[Task]:
    return frozenset(task for i, task in enumerate(TASKS) if bits >> i & 1)
