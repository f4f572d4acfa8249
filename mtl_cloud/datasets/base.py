"""What every dataset gives: samples with the labels that it has, and no others. NumPy only; torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.tasks import TASKS, Task

__all__ = ["IGNORE", "Boxes", "Dataset", "DatasetInfo", "DecodeHint", "HintFor", "Sample", "full_decode"]

IGNORE = 255
"""Mask value of pixels that count neither in the loss nor in the metrics (VOC's border)."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a split before any sample is read."""

    name: str
    split: str
    classes: Mapping[Task, tuple[str, ...]]
    """Class names of each task that the dataset labels. Segmentation counts ``background`` as class 0;
    classification and detection have no background."""
    multi_label: bool = False
    """Classification labels are sets of classes (VOC) rather than one class (CIFAR-10, ImageNet)."""
    digest: str | None = None
    """Of a prepared dataset: names its content, all splits, wherever it lies."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for task in TASKS if task in self.classes)


@dataclass(frozen=True)
class Boxes:
    """The objects of one image. ``n`` may be 0: the image is known to hold none."""

    xyxy: npt.NDArray[np.float32]
    """[n, 4] left, top, right, bottom in pixels; 0-based, right and bottom exclusive."""
    classes: npt.NDArray[np.int64]
    """[n] index into ``DatasetInfo.classes["detection"]``."""
    difficult: npt.NDArray[np.bool_]
    """[n] VOC's flag: not trained on, and neither hit nor miss in evaluation."""


@dataclass(frozen=True)
class Sample:
    """One image and its labels. A label of None means: this sample does not carry it."""

    key: str
    """Names the sample for people: the file, or the archive and member."""
    image: npt.NDArray[np.uint8]
    """[height, width, 3] RGB; perhaps shrunk, and black below what was asked for."""
    classification: int | npt.NDArray[np.float32] | None = None
    """Class index; or, for multi-label sets, [classes] with 1 present, 0 absent, -1 unknown (VOC's difficult only)."""
    detection: Boxes | None = None
    segmentation: npt.NDArray[np.uint8] | None = None
    """[height, width] class index, ``IGNORE`` where unknown."""
    shrunk_from: tuple[int, int] | None = None
    """Height and width of an image that was shrunk while it was decoded. Boxes and mask are as they were."""
    replaces: str | None = None
    """Key of the bad sample in whose place this one stands, under ``on_bad_sample: skip``. It then carries no labels:
    it counts neither in a loss nor in a metric."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image as it is stored."""
        return self.shrunk_from or self.image.shape[:2]


class DecodeHint(NamedTuple):
    """How little of a stored image is enough."""

    divisor: int
    """1, 2, 4 or 8: its sides may be divided by this."""
    rows: int
    """From its top, before the division. What lies below may come out black."""


HintFor: TypeAlias = Callable[[int, int], DecodeHint]
"""(height, width) of a stored image -> how little of it is enough."""


def full_decode(height: int, width: int) -> DecodeHint:  # noqa: ARG001  # a `HintFor`
    """Nothing is spared."""
    return DecodeHint(1, height)


class Dataset(Protocol):
    """A split, random access. Instances are picklable (loader workers are spawned) and open files lazily."""

    @property
    def info(self) -> DatasetInfo: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample. Raises ``DatasetError`` naming the file when it is damaged or wrongly labelled."""
        ...

    def load(self, index: int, hint_for: HintFor) -> Sample:
        """The same, but of its image only as much need be decoded as ``shrink`` asks for."""
        ...

    def key(self, index: int) -> str:
        """The name of a sample, without decoding it. Equal keys are the same image, in any split."""
        ...

    def labels(self, index: int) -> frozenset[Task]:
        """Which labels the sample carries, without decoding it."""
        ...
