"""A sample in a shard: its files, its digest, and its checks."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtl_cloud.datasets.base import IGNORE, Boxes, DatasetInfo
from mtl_cloud.datasets.files import decode_mask, decode_rgb
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import TASKS, Task

__all__ = ["EncodedSample", "Files", "check_sample", "files_of", "stem_of", "unusual"]

Files: TypeAlias = list[tuple[str, bytes]]
"""(name within the shard, content) of each file."""


@dataclass(frozen=True)
class EncodedSample:
    """A ``Sample`` whose image and mask are still encoded."""

    key: str
    image: bytes
    """JPEG, PNG or PPM."""
    where: str = field(compare=False)
    """The file, or the archive and member: for messages."""
    classification: int | npt.NDArray[np.float32] | None = None
    detection: Boxes | None = None
    mask: bytes | None = None
    """PNG of class indices."""

    @property
    def tasks(self) -> frozenset[Task]:
        values = dict(zip(TASKS, (self.classification, self.detection, self.mask), strict=True))
        return frozenset(task for task in TASKS if values[task] is not None)


def stem_of(key: str) -> str:
    """The name of a sample's files in a shard up to its only dot, because webdataset splits at the first one.

    >>> stem_of("n01440764/n01440764_10026.JPEG")
    'n01440764/n01440764_10026'
    """
    folder, slash, name = key.rpartition("/")
    base, dot, suffix = name.rpartition(".")
    return folder + slash + (base if dot and suffix.lower() in _SUFFIXES else name).replace(".", "_")


_SUFFIXES = {"jpeg", "jpg", "png", "ppm"}


def files_of(sample: EncodedSample, info: DatasetInfo) -> Files:
    """The sample's files in their order in a shard: image, mask, labels."""
    stem = stem_of(sample.key)
    files = [(f"{stem}.{_suffix(sample.image)}", sample.image)]
    if sample.mask is not None:
        files.append((f"{stem}.seg.png", sample.mask))
    if isinstance(sample.classification, int):
        files.append((f"{stem}.cls", str(sample.classification).encode()))
    if labels := dict(_named_labels(sample, info)):
        files.append((f"{stem}.json", json.dumps(labels).encode()))
    return files


def digest_of(files: Files) -> bytes:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.digest()


def _suffix(image: bytes) -> str:
    if image.startswith(b"P6"):
        return "ppm"
    return "png" if image.startswith(b"\x89PNG") else "jpg"


def _named_labels(sample: EncodedSample, info: DatasetInfo) -> Iterator[tuple[str, Any]]:
    """Labels that are more than one number, with class names, for tools without the index."""
    if isinstance(sample.classification, np.ndarray):
        names = info.classes["classification"]
        for label, value in (("classes", 1), ("unknown_classes", -1)):
            yield label, [names[i] for i in np.flatnonzero(sample.classification == value)]
    if sample.detection is not None:
        names, boxes = info.classes["detection"], sample.detection
        rows = zip(boxes.classes.tolist(), boxes.xyxy.tolist(), boxes.difficult.tolist(), strict=True)
        yield "boxes", [{"class": names[c], "xyxy": xyxy, "difficult": difficult} for c, xyxy, difficult in rows]


def check_sample(sample: EncodedSample, info: DatasetInfo) -> tuple[int, int]:
    """Height and width of the image, decoded in full.

    Raises
    ------
    DatasetError
        The image cannot be decoded, its mask has another size, or a label is out of range.
    """
    height, width = decode_rgb(sample.image, sample.where).shape[:2]
    if max(height, width) > np.iinfo(np.uint16).max:
        raise _wrong(sample, f"{width}x{height} pixels exceed the limit of 65535 a side")
    if isinstance(sample.classification, int):
        _assert_class(sample, sample.classification, len(info.classes["classification"]))
    if sample.detection is not None:
        for class_index in sample.detection.classes.tolist():
            _assert_class(sample, class_index, len(info.classes["detection"]))
    if sample.mask is not None:
        _assert_mask(sample, sample.mask, (height, width), len(info.classes["segmentation"]))
    return height, width


def unusual(sample: EncodedSample) -> str | None:
    """How the image differs from the RGB or grey JPEG that fast decoders expect, or None. It must be decodable."""
    image = Image.open(io.BytesIO(sample.image))
    if image.format != "JPEG" and sample.key.lower().endswith((".jpeg", ".jpg")):
        return f"a {image.format} named as a JPEG"
    return f"a {image.mode} {image.format}" if image.mode not in {"RGB", "L"} else None


def _assert_class(sample: EncodedSample, class_index: int, classes: int) -> None:
    if not 0 <= class_index < classes:
        raise _wrong(sample, f"label {class_index}, and there are {classes} classes")


def _assert_mask(sample: EncodedSample, data: bytes, shape: tuple[int, int], classes: int) -> None:
    mask = decode_mask(data, f"{sample.where}: its mask")
    if mask.shape != shape:
        raise _wrong(sample, f"its mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}")
    if (wrong := (mask >= classes) & (mask != IGNORE)).any():
        raise _wrong(sample, f"its mask holds class {mask[wrong][0]}, and there are {classes} classes")


def _wrong(sample: EncodedSample, what: str) -> DatasetError:
    return DatasetError(f"{sample.where}: {what}", hint="correct the original, or skip bad samples with --on-bad")
