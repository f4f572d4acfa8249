"""The original forms of the datasets as sources of a preparation."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.files import image_size
from mtl_cloud.datasets.formats.cifar10 import Cifar10Dataset
from mtl_cloud.datasets.formats.imagenet import ImageNetDataset
from mtl_cloud.datasets.formats.voc import Kind, VocDataset, boxes, class_set
from mtl_cloud.datasets.preparation.source import Indices, fingerprint_of
from mtl_cloud.datasets.shards.sample import EncodedSample, Files
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import Task

__all__ = ["CifarSource", "ImageNetSource", "VocSource"]

_TRAIN_NAME = re.compile(r"(n\d{8})/(n\d{8})_")


@dataclass(frozen=True)
class ImageNetSource:
    """Original JPEGs from tars or folders."""

    dataset: ImageNetDataset

    @property
    def info(self) -> DatasetInfo:
        return self.dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, index: int) -> str:
        return self.dataset.key(index)

    @property
    def sizes(self) -> Indices:
        return self.dataset.store.sizes[self.dataset.positions]

    @property
    def fingerprint(self) -> bytes:
        return fingerprint_of(self.dataset.keys.tolist(), self.sizes, self.dataset.targets)

    def take(self, indices: Indices) -> ImageNetSource:
        return ImageNetSource(self.dataset.take(indices))

    def read(self, index: int) -> EncodedSample:
        """Raises ``DatasetError`` also if a training image is named after another class than its folder or tar."""
        where, key = self.dataset.where(index), self.key(index)
        names = _TRAIN_NAME.match(key)
        if names and names[1] != names[2]:
            raise DatasetError(f"{where}: wrong label: it is named after {names[2]}, but is in {names[1]}")
        return EncodedSample(key, self.dataset.read(index), where, classification=int(self.dataset.targets[index]))

    def originals(self, index: int) -> Files:
        return [(self.key(index), self.dataset.read(index))]


@dataclass(frozen=True)
class VocSource:
    """Original images and masks of VOCdevkit, with parsed annotations."""

    dataset: VocDataset

    @property
    def info(self) -> DatasetInfo:
        return self.dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, index: int) -> str:
        return self.dataset.key(index)

    @property
    def sizes(self) -> Indices:
        images_and_masks: Indices = self._sizes[:, :2].sum(axis=1)
        return images_and_masks

    @property
    def fingerprint(self) -> bytes:
        return fingerprint_of(self.dataset.ids, self._sizes)

    def take(self, indices: Indices) -> VocSource:
        return VocSource(replace(self.dataset, ids=tuple(self.dataset.ids[i] for i in indices.tolist())))

    def read(self, index: int) -> EncodedSample:
        dataset, labels = self.dataset, self.dataset.labels(index)
        image, where = dataset.read("image", index), dataset.where("image", index)
        objects = dataset.objects(index, *image_size(image, where)) if "detection" in labels else None
        return EncodedSample(
            self.key(index),
            image,
            where,
            classification=None if objects is None else class_set(objects),
            detection=None if objects is None else boxes(objects),
            mask=dataset.read("mask", index) if "segmentation" in labels else None,
        )

    def originals(self, index: int) -> Files:
        key = self.key(index)
        suffixes: dict[Kind, str] = {"image": "jpg", "boxes": "xml", "mask": "png"}
        return [(f"{key}.{suffixes[kind]}", self.dataset.read(kind, index)) for kind in sorted(self._kinds(index))]

    @property
    def _sizes(self) -> Indices:
        """[n, 3] bytes of image, mask and annotation."""
        kinds: tuple[Kind, ...] = ("image", "mask", "boxes")
        present = (self._kinds(i) for i in range(len(self)))
        sizes = [[self.dataset.size(kind, i) if kind in own else 0 for kind in kinds] for i, own in enumerate(present)]
        return np.array(sizes, np.int64).reshape(-1, len(kinds))

    def _kinds(self, index: int) -> set[Kind]:
        """Files that the sample has."""
        labels = self.dataset.labels(index)
        by_label: dict[Task, Kind] = {"detection": "boxes", "segmentation": "mask"}
        return {"image", *(kind for task, kind in by_label.items() if task in labels)}


@dataclass(frozen=True)
class CifarSource:
    """CIFAR-10's pixels as PPM: lossless like PNG, but with the same bytes from every encoder."""

    info: DatasetInfo
    keys: tuple[str, ...]
    labels: Indices
    pixels: np.ndarray
    """[n, height, width, 3] uint8 RGB."""
    path: str

    @classmethod
    def of(cls, dataset: Cifar10Dataset) -> CifarSource:
        content = dataset.content
        pixels = np.stack([content.image(i) for i in range(len(dataset))])
        return cls(dataset.info, tuple(content.keys), content.labels, pixels, str(dataset.path))

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    @property
    def sizes(self) -> Indices:
        return np.full(len(self), self.pixels[0].size, np.int64)

    @property
    def fingerprint(self) -> bytes:
        return fingerprint_of(self.keys, self.labels, self.pixels)

    def take(self, indices: Indices) -> CifarSource:
        keys = tuple(self.keys[i] for i in indices.tolist())
        return replace(self, keys=keys, labels=self.labels[indices], pixels=self.pixels[indices])

    def read(self, index: int) -> EncodedSample:
        where = f"{self.path}: {self.key(index)}"
        return EncodedSample(self.key(index), ppm(self.pixels[index]), where, classification=int(self.labels[index]))

    def originals(self, index: int) -> Files:
        return [(f"{self.key(index)}.ppm", ppm(self.pixels[index]))]


def ppm(image: np.ndarray) -> bytes:
    """[height, width, 3] uint8 as a binary portable pixmap (http://netpbm.sourceforge.net/doc/ppm.html)."""
    height, width = image.shape[:2]
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()
