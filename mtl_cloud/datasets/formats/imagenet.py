"""ImageNet (ILSVRC2012): extracted class folders, or the original tars, read without unpacking.

Both forms give the same samples in the same order under the same keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import DatasetInfo, HintFor, Sample, full_decode
from mtl_cloud.datasets.files import ByteReader, RandomReader, decode_scaled, local_path, read_bytes
from mtl_cloud.datasets.formats.ilsvrc_devkit import GroundTruth, class_names
from mtl_cloud.datasets.stored_file import StoredFile
from mtl_cloud.datasets.tar_index import TarIndex, default_cache, index_tar, inner_tars
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import Task

__all__ = ["TARS", "ImageNetDataset", "open_imagenet", "open_stored_imagenet"]

TARS = {
    "train": ("ILSVRC2012_img_train.tar", "ILSVRC2012_train.tar"),
    "val": ("ILSVRC2012_img_val.tar", "ILSVRC2012_val.tar"),
}
_SUFFIXES = (b".jpeg", b".jpg", b".png")


class ImageStore(Protocol):
    """Encoded images by position."""

    @property
    def names(self) -> npt.NDArray[np.bytes_]:
        """[n] ``wnid/file``, or ``file`` alone where the class is not part of the path."""
        ...

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[n] in bytes, without reading them."""
        ...

    def take(self, positions: npt.NDArray[np.int64]) -> Self:
        """Only these images."""
        ...

    def read(self, position: int) -> bytes:
        """The bytes as they are stored. Raises ``DatasetError``."""
        ...

    def where(self, position: int) -> str:
        """The file, or the archive and member."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """Files below a folder."""

    folder: Path
    names: npt.NDArray[np.bytes_]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.array([Path(self.where(i)).stat().st_size for i in range(len(self.names))])

    def take(self, positions: npt.NDArray[np.int64]) -> FolderStore:
        return FolderStore(self.folder, self.names[positions])

    def read(self, position: int) -> bytes:
        return read_bytes(self.where(position))

    def where(self, position: int) -> str:
        return f"{self.folder}/{os.fsdecode(self.names[position])}"


@dataclass(frozen=True)
class TarStore:
    """Members of a tar, or of the tars in it, read by their offset."""

    reader: ByteReader
    index: TarIndex

    @property
    def names(self) -> npt.NDArray[np.bytes_]:
        return self.index.names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.index.sizes

    def take(self, positions: npt.NDArray[np.int64]) -> TarStore:
        names, offsets, sizes = self.index
        return TarStore(self.reader, TarIndex(names[positions], offsets[positions], sizes[positions]))

    def read(self, position: int) -> bytes:
        return self.reader.read(int(self.index.offsets[position]), int(self.index.sizes[position]))

    def where(self, position: int) -> str:
        return f"{self.reader.path}: {os.fsdecode(self.names[position])}"


@dataclass(frozen=True)
class ImageNetDataset:
    """A split, sorted by key."""

    info: DatasetInfo
    keys: npt.NDArray[np.bytes_]
    """[n] ``wnid/file``."""
    targets: npt.NDArray[np.int64]
    """[n] class index."""
    positions: npt.NDArray[np.int64]
    """[n] position in the store."""
    store: ImageStore

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        image, shape = decode_scaled(self.read(index), self.where(index), hint_for)
        return Sample(self.key(index), image, classification=int(self.targets[index]), stored_shape=shape)

    def read(self, index: int) -> bytes:
        """The encoded image as stored. Raises ``DatasetError``."""
        return self.store.read(self.positions[index])

    def where(self, index: int) -> str:
        """The file, or the archive and member."""
        return self.store.where(self.positions[index])

    def take(self, indices: npt.NDArray[np.int64]) -> ImageNetDataset:
        """Only these images."""
        store = self.store.take(self.positions[indices])
        return ImageNetDataset(self.info, self.keys[indices], self.targets[indices], np.arange(len(indices)), store)

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def labels(self, index: int) -> frozenset[Task]:  # noqa: ARG002  # every sample carries the same
        return frozenset(self.info.tasks)


def open_imagenet(uri: str | None, split: str) -> ImageNetDataset:
    """``train`` or ``val`` of the folder ``uri``, from class folders ``train/<wnid>/`` or from the tar.

    Both splits have the classes of the train split, sorted by wnid. Validation images outside class folders (the
    tar's) are labelled by the devkit's files (``ilsvrc_devkit``).

    Raises
    ------
    DatasetError
        Neither form exists, a tar is truncated, a class has no images, or an image has no class.
    """
    if split not in TARS:
        raise DatasetError(f"imagenet has no split {split!r}", hint="it has train and val")
    root = _find_root(local_path(uri or "ILSVRC2012"))
    return _label(split, _open_store(root, split), _train_wnids(root), root)


def open_stored_imagenet(tars: Mapping[str, StoredFile], split: str, devkit: Path) -> ImageNetDataset:
    """A split of the original tars (split -> tar) in a storage, with the devkit's files in a local folder.

    Raises ``DatasetError`` as ``open_imagenet``.
    """
    cache = default_cache(os.environ)
    store = TarStore(tars[split], index_tar(tars[split], cache))
    return _label(split, store, inner_tars(tars["train"]) if "train" in tars else [], devkit)


def _label(split: str, store: ImageStore, train_wnids: Sequence[str], devkit: Path) -> ImageNetDataset:
    """The images of ``store``, sorted by key. Without a train split, the classes are those of the images."""
    keys = np.array(_keys(store.names.tolist(), devkit))
    order = np.argsort(keys, kind="stable")
    wnids = [os.fsdecode(key.partition(b"/")[0]) for key in keys[order].tolist()]
    classes = train_wnids or sorted(set(wnids))
    info = DatasetInfo("imagenet", split, {"classification": class_names(classes, devkit)})
    return ImageNetDataset(info, keys[order], _targets(wnids, classes, devkit / split), order, store)


def _find_root(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    for root in (folder, folder / "ILSVRC2012"):
        if any((root / name).exists() for split, tars in TARS.items() for name in (split, *tars)):
            return root
    raise DatasetError(
        f"{folder}: neither the folders train/ and val/ nor the tars {TARS['train'][0]} and {TARS['val'][0]} in it",
        hint="`uri:` names the folder that holds them",
    )


def _open_store(root: Path, split: str) -> ImageStore:
    if (root / split).is_dir():
        return FolderStore(root / split, np.array(_image_files(root / split)))
    if tar := _tar(root, split):
        return TarStore(RandomReader(tar), index_tar(tar, default_cache(os.environ)))
    raise DatasetError(
        f"{root}: neither the folder {split}/ nor the tar {TARS[split][0]} in it", hint="get that split too"
    )


def _tar(root: Path, split: str) -> Path | None:
    return next((root / name for name in TARS[split] if (root / name).is_file()), None)


def _image_files(folder: Path) -> list[bytes]:
    entries = sorted(os.scandir(os.fsencode(folder)), key=lambda entry: entry.name)
    flat = [entry.name for entry in entries if entry.name.lower().endswith(_SUFFIXES)]
    names = flat + [name for entry in entries if entry.is_dir() for name in _class_files(entry.path, entry.name)]
    if not names:
        raise DatasetError(f"{folder}: there are no images in it", hint="unpack the tar into it, one folder per class")
    return names


def _class_files(path: bytes, wnid: bytes) -> list[bytes]:
    names = [
        wnid + b"/" + name for name in (entry.name for entry in os.scandir(path)) if name.lower().endswith(_SUFFIXES)
    ]
    if not names:
        raise DatasetError(
            f"{os.fsdecode(path)}: the class has no images", hint="unpack its tar again, or remove the folder"
        )
    return names


def _keys(names: Sequence[bytes], root: Path) -> list[bytes]:
    if all(b"/" in name for name in names):
        return list(names)
    truth = GroundTruth.read(root)
    return [name if b"/" in name else os.fsencode(truth.wnid(os.fsdecode(name))) + b"/" + name for name in names]


def _train_wnids(root: Path) -> list[str]:
    if (root / "train").is_dir():
        return sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir())
    tar = _tar(root, "train")
    return inner_tars(tar) if tar else []


def _targets(wnids: Sequence[str], classes: Sequence[str], source: Path) -> npt.NDArray[np.int64]:
    if unknown := sorted(set(wnids).difference(classes)):
        raise DatasetError(
            f"{source}: images of {len(unknown)} classes that the train split does not have, e.g. {unknown[0]}",
            hint="validation can only use classes of the train split: add them to train, or remove them here",
        )
    index = {wnid: i for i, wnid in enumerate(classes)}
    return np.array([index[wnid] for wnid in wnids])
