"""CIFAR-10 (A. Krizhevsky, 2009): the original pickled batches, or a lossy pack of all images as JPEG.

Both have the original order, so an image has the same key in both: its batch and row.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import DatasetInfo, HintFor, Sample
from mtl_cloud.datasets.files import decode_rgb, local_path, read_bytes
from mtl_cloud.datasets.formats.pickles import loads
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import Task

__all__ = ["CLASSES", "Cifar10Dataset", "open_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE = 32
_ROWS_PER_BATCH = 10_000
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_BATCH_LABELS = {name: f"training batch {i} of 5" for i, name in enumerate(_BATCHES["train"], 1)} | {
    "test_batch": "testing batch 1 of 1"
}
_PACK = "cifar10_full_jpeg.npz"
_UNPACK = "unpack cifar-10-python.tar.gz, and name its folder in `uri:`"


class Content(NamedTuple):
    """A split in memory."""

    keys: Sequence[str]
    labels: npt.NDArray[np.int64]
    image: Callable[[int], npt.NDArray[np.uint8]]
    """Index -> [32, 32, 3] RGB."""


Reader: TypeAlias = Callable[[Path, str], Content]


@dataclass(frozen=True)
class Cifar10Dataset:
    """A split. Its pickle holds the path only: a loader worker reads the file itself."""

    path: Path
    split: str
    read: Reader

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo("cifar10", self.split, {"classification": CLASSES})

    def __len__(self) -> int:
        return len(self.content.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self.content.image(index)
        return Sample(key=self.key(index), image=image, classification=int(self.content.labels[index]))

    def load(self, index: int, hint_for: HintFor) -> Sample:  # noqa: ARG002  # these pixels are not encoded
        return self[index]

    def key(self, index: int) -> str:
        return self.content.keys[index]

    def labels(self, index: int) -> frozenset[Task]:  # noqa: ARG002  # every sample carries the same
        return frozenset(self.info.tasks)

    @cached_property
    def content(self) -> Content:
        """The split's content, read once in each process."""
        return self.read(self.path, self.split)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "content"}


def open_cifar10(uri: str | None, split: str) -> Cifar10Dataset:
    """``train`` or ``test`` of the folder or file ``uri`` (``val`` means ``test``; CIFAR-10 has no other).

    If a folder holds both forms, ``train`` and ``test`` read the original batches; ``train_jpeg`` and ``test_jpeg``
    always read the JPEG pack.

    Raises
    ------
    DatasetError
        A file is missing or damaged, a label is out of range, or there is no such split.
    """
    name, _, form = {"val": "test", "val_jpeg": "test_jpeg"}.get(split, split).partition("_")
    if name not in _BATCHES or form not in {"", "jpeg"}:
        raise DatasetError(
            f"cifar10 has no split {split!r}",
            hint="it has train and test, and in the JPEG pack train_jpeg and test_jpeg",
        )
    path, read = _find(local_path(uri or "cifar-10-batches-py"), lossy=form == "jpeg")
    dataset = Cifar10Dataset(path, name, read)
    _assert_labels(dataset)
    return dataset


def _find(path: Path, *, lossy: bool) -> tuple[Path, Reader]:
    batches = [folder for folder in (path, path / "cifar-10-batches-py") if (folder / "data_batch_1").is_file()]
    packs = [file for file in (path, path / _PACK) if file.is_file()]
    if batches and not lossy:
        return batches[0], read_batches
    if packs:
        return packs[0], read_pack
    wanted = _PACK if lossy else f"cifar-10-batches-py/data_batch_1, nor {_PACK}"
    raise DatasetError(f"{path}: there is no {wanted} in it", hint=_UNPACK)


def _assert_labels(dataset: Cifar10Dataset) -> None:
    labels = dataset.content.labels
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if wrong.size:
        row = int(wrong[0])
        raise DatasetError(
            f"{dataset.path}: {dataset.key(row)} has label {labels[row]}, and there are {len(CLASSES)} classes",
            hint="the file is damaged: get it again",
        )
    if empty := sorted(set(range(len(CLASSES))) - set(labels.tolist())):
        raise DatasetError(
            f"{dataset.path}: {dataset.split} has no image of class {CLASSES[empty[0]]}",
            hint="a model cannot learn or be measured on a class without images: get the files again",
        )


def read_batches(folder: Path, split: str) -> Content:
    """The original pickles, which may be truncated to their first rows."""
    batches = [_read_batch(folder / name) for name in _BATCHES[split]]
    pixels = np.concatenate([data for data, _ in batches])

    def image(index: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(pixels[index].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))

    return Content(
        keys=[
            f"{name}/{row}"
            for name, (data, _) in zip(_BATCHES[split], batches, strict=True)
            for row in range(len(data))
        ],
        labels=np.concatenate([labels for _, labels in batches]),
        image=image,
    )


def _read_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = loads(read_bytes(path), str(path))
    data: Any = batch.get("data")
    labels: Any = batch.get("labels")
    if not _is_batch(data, labels):
        raise DatasetError(
            f"{path}: not a batch of CIFAR-10: one row of 3072 bytes for each label is expected", hint=_UNPACK
        )
    if (said := batch.get("batch_label", _BATCH_LABELS[path.name])) != _BATCH_LABELS[path.name]:
        raise DatasetError(
            f"{path}: its label is {said!r}: under this name its images would be in the wrong split", hint=_UNPACK
        )
    return data, np.array(labels, dtype=np.int64)


def _is_batch(data: object, labels: object) -> bool:
    return (
        isinstance(data, np.ndarray)
        and isinstance(labels, list)
        and data.shape == (len(labels), 3 * _SIDE**2)
        and all(isinstance(label, int) for label in labels)
    )


def read_pack(path: Path, split: str) -> Content:
    """``{split}_jpeg`` (streams end to end), ``{split}_offsets`` [n + 1] and ``{split}_labels`` [n] of an npz file."""
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as pack:
            streams, offsets, labels = (pack[f"{split}_{part}"] for part in ("jpeg", "offsets", "labels"))
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path}: not a pack of CIFAR-10's images, or damaged ({error})",
            hint=_UNPACK,
        ) from error
    if len(offsets) != len(labels) + 1 or offsets[-1] != streams.size:
        raise DatasetError(
            f"{path}: {split} has {len(labels)} labels, and its offsets do not match", hint="make the pack again"
        )
    names = [f"{batch}/{row}" for batch in _BATCHES[split] for row in range(_ROWS_PER_BATCH)]

    def image(index: int) -> npt.NDArray[np.uint8]:
        data = streams[offsets[index] : offsets[index + 1]].tobytes()
        return decode_rgb(data, f"{path}: {names[index]}")

    return Content(keys=names[: len(labels)], labels=labels.astype(np.int64), image=image)
