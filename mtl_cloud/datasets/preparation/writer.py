"""Build a shard and its index rows. The bytes depend on the samples alone."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass, field

import numpy as np

from mtl_cloud.datasets.base import Boxes, DatasetInfo
from mtl_cloud.datasets.shards.checksum import crc64nvme
from mtl_cloud.datasets.shards.format import BOX, Rows, row_dtype, task_bits
from mtl_cloud.datasets.shards.sample import EncodedSample, Files, digest_of, files_of

__all__ = ["ShardWriter", "WrittenShard", "tar_size"]

_END = tarfile.NUL * (2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class WrittenShard:
    """A shard in memory, and its index rows in the order of the shard."""

    data: bytes
    rows: Rows
    """``first_box`` counts from the shard's first box."""
    boxes: Rows
    digests: Rows
    """[n] SHA-256 of each sample, as 32 bytes."""


@dataclass
class ShardWriter:
    """Builds a shard: append samples, then call ``finish``."""

    info: DatasetInfo
    number: int
    key_bytes: int
    """Bytes of the split's longest key in UTF-8."""
    _tar: io.BytesIO = field(default_factory=io.BytesIO)
    _rows: list[Rows] = field(default_factory=list)
    _boxes: list[Rows] = field(default_factory=list)
    _digests: list[bytes] = field(default_factory=list)

    def append(self, sample: EncodedSample, *, height: int, width: int) -> None:
        """Add a checked sample."""
        files = files_of(sample, self.info)
        offsets = self._append_files(files)
        row = np.zeros((), row_dtype(self.info, self.key_bytes))
        row["key"], row["tasks"] = os.fsencode(sample.key), task_bits(sample.tasks)
        row["shard"], row["height"], row["width"] = self.number, height, width
        row["offset"], row["size"], row["crc64nvme"] = offsets[0], len(sample.image), crc64nvme(sample.image)
        if sample.classification is not None:
            row["classification"] = sample.classification
        if sample.detection is not None:
            row["first_box"], row["boxes"] = sum(map(len, self._boxes)), len(sample.detection.classes)
            self._boxes.append(_box_rows(sample.detection))
        if sample.mask is not None:
            row["mask_offset"], row["mask_size"] = offsets[1], len(sample.mask)
            row["mask_crc64nvme"] = crc64nvme(sample.mask)
        self._rows.append(row)
        self._digests.append(digest_of(files))

    def finish(self) -> WrittenShard:
        self._tar.write(_END)
        return WrittenShard(
            data=self._tar.getvalue(),
            rows=np.array(self._rows, row_dtype(self.info, self.key_bytes)),
            boxes=np.concatenate([np.zeros(0, BOX), *self._boxes]),
            digests=np.array(self._digests, "V32"),
        )

    def _append_files(self, files: Files) -> list[int]:
        """Append files; returns the offsets of their contents."""
        offsets = []
        for name, data in files:
            self._tar.write(_header(name, len(data)))
            offsets.append(self._tar.tell())
            self._tar.write(data)
            self._tar.write(tarfile.NUL * (-len(data) % tarfile.BLOCKSIZE))
        return offsets


def tar_size(contents: int) -> int:
    """Bytes of a file of ``contents`` bytes in a tar, with header and padding."""
    return tarfile.BLOCKSIZE * (1 + -(-contents // tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    """A header without time, owner or anything else that does not depend on the content."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def _box_rows(boxes: Boxes) -> Rows:
    rows = np.zeros(len(boxes.classes), BOX)
    rows["xyxy"], rows["class"], rows["difficult"] = boxes.xyxy, boxes.classes, boxes.difficult
    return rows
