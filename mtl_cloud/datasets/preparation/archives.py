"""Open the original archives, local or in a storage, as sources of splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, TypeAlias

from mtl_cloud.datasets.file_trees import FileTree, StorageTree, TarTree
from mtl_cloud.datasets.files import local_path
from mtl_cloud.datasets.formats.cifar10 import open_cifar10
from mtl_cloud.datasets.formats.ilsvrc_devkit import DEVKIT_FILES
from mtl_cloud.datasets.formats.imagenet import TARS, open_imagenet, open_stored_imagenet
from mtl_cloud.datasets.formats.voc import open_voc, open_voc_year
from mtl_cloud.datasets.preparation.source import Source
from mtl_cloud.datasets.preparation.sources import CifarSource, ImageNetSource, VocSource
from mtl_cloud.datasets.shards.reader import is_remote
from mtl_cloud.datasets.stored_file import StoredFile
from mtl_cloud.datasets.tar_index import default_cache, index_tar
from mtl_cloud.errors import DatasetError
from mtl_cloud.storage import Storage, open_storage

__all__ = ["ALIASES", "ORIGINALS", "Original", "open_sources"]

Original: TypeAlias = Literal["imagenet", "voc", "cifar10"]
_Open: TypeAlias = Callable[[str], Source]
"""Split -> source."""


class _Kind(NamedTuple):
    splits: tuple[str, ...]
    """Splits that are prepared by default."""
    local: Callable[[str, str], Source]
    """URI, split -> source."""
    stored: Callable[[Storage, Path], _Open]
    """Storage, scratch folder -> opener of splits."""


@contextmanager
def open_sources(original: Original, uri: str, splits: Sequence[str] = ()) -> Iterator[dict[str, Source]]:
    """The splits of the original archives below ``uri``. Only small text files are unpacked.

    Raises
    ------
    DatasetError
        They are missing or incomplete.
    StorageError
        The storage does not answer.
    """
    kind = _KINDS[original]
    with TemporaryDirectory() as scratch:
        opened = _stored(kind, uri, Path(scratch)) if is_remote(uri) else lambda split: kind.local(uri, split)
        yield {split: opened(split) for split in splits or kind.splits}


def _stored(kind: _Kind, uri: str, scratch: Path) -> _Open:
    """Opens splits in a storage. ``uri`` may name the folder or one archive in it."""
    folder = uri.rpartition("/")[0] if uri.endswith(".tar") else uri
    return kind.stored(open_storage(folder), scratch)


# --- ImageNet --------------------------------------------------------------------------------------------------------


def _stored_imagenet(storage: Storage, scratch: Path) -> _Open:
    sizes = _sizes(storage)
    tars = {split: _find(storage, sizes, names) for split, names in TARS.items()}
    present = {split: tar for split, tar in tars.items() if tar is not None}
    _fetch(storage, [key for key in sizes if key.rpartition("/")[2] in DEVKIT_FILES], scratch)

    def opened(split: str) -> Source:
        if split not in present:
            raise DatasetError(
                f"{storage.url}: no {' or '.join(TARS.get(split, (f'split {split}',)))} there",
                hint="upload the original tars; class folders can be prepared from local disks only",
            )
        return ImageNetSource(open_stored_imagenet(present, split, scratch))

    return opened


def _find(storage: Storage, sizes: Mapping[str, int], names: Iterable[str]) -> StoredFile | None:
    keys = [key for key in sizes if key.rpartition("/")[2] in names]
    return StoredFile(storage, keys[0], sizes[keys[0]]) if keys else None


# --- VOC -------------------------------------------------------------------------------------------------------------


def _local_voc(uri: str, split: str) -> Source:
    path = local_path(uri)
    if path.is_dir():
        return VocSource(open_voc(uri, split))
    return VocSource(open_voc_year(_voc_tar(_stored_at(path)), split))


def _stored_at(path: Path) -> StoredFile:
    return StoredFile(open_storage(path.resolve().parent), path.name, path.stat().st_size)


def _stored_voc(storage: Storage, _scratch: Path) -> _Open:
    files = _voc_files(storage)
    return lambda split: VocSource(open_voc_year(files, split))


def _voc_files(storage: Storage) -> FileTree:
    sizes = _sizes(storage)
    if any(_IMAGES in f"/{key}" for key in sizes):
        return StorageTree(storage, _year(sizes, storage.url), sizes)
    tars = [key for key in sizes if key.endswith(".tar")]
    if len(tars) != 1:
        raise DatasetError(
            f"{storage.url}: neither VOC2012{_IMAGES} nor one tar of it there",
            hint="name the folder of VOCdevkit, or VOCtrainval_11-May-2012.tar",
        )
    return _voc_tar(StoredFile(storage, tars[0], sizes[tars[0]]))


def _voc_tar(tar: StoredFile) -> TarTree:
    index = index_tar(tar, default_cache(os.environ))
    places = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    members = dict(zip(map(os.fsdecode, index.names.tolist()), places, strict=True))
    return TarTree(tar, _year(members, tar.path), members)


_IMAGES = "/JPEGImages/"


def _year(names: Iterable[str], where: str) -> str:
    """The only folder that holds ``JPEGImages/``. Raises ``DatasetError`` if there is none or several."""
    years = sorted({name.partition(_IMAGES)[0] for name in names if _IMAGES in name})
    if len(years) != 1:
        raise DatasetError(
            f"{where}: {'several years' if years else 'no year'} of VOC in it ({', '.join(years) or 'no JPEGImages'})",
            hint="name the folder or tar of one year",
        )
    return years[0]


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def _local_cifar(uri: str, split: str) -> Source:
    return CifarSource.of(open_cifar10(uri, split))


def _stored_cifar(storage: Storage, scratch: Path) -> _Open:
    """Downloads the six files, 180 MB."""
    names = [key for key in _sizes(storage) if key.rpartition("/")[2].startswith(("data_batch_", "test_batch"))]
    _fetch(storage, names, scratch)
    return lambda split: _local_cifar(str(scratch), split)


# --- all -------------------------------------------------------------------------------------------------------------


def _sizes(storage: Storage) -> dict[str, int]:
    return {entry.key: entry.size for entry in storage.list("")}


def _fetch(storage: Storage, keys: Iterable[str], folder: Path) -> None:
    """Download objects to ``folder``, under their base names."""
    for key in keys:
        (folder / key.rpartition("/")[2]).write_bytes(storage.read(key))


_KINDS: Mapping[str, _Kind] = {
    "imagenet": _Kind(("train", "val"), lambda uri, split: ImageNetSource(open_imagenet(uri, split)), _stored_imagenet),
    "voc": _Kind(("train", "val"), _local_voc, _stored_voc),
    "cifar10": _Kind(("train", "test"), _local_cifar, _stored_cifar),
}
ORIGINALS = tuple(_KINDS)
ALIASES: Mapping[str, Mapping[str, str]] = {"cifar10": {"val": "test"}}
"""Dataset -> other name -> split, for names that a job may use."""
