"""The dataset interface: samples with partial labels. It uses NumPy only; torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.tasks import TASKS, Task

__all__ = ["IGNORE", "Boxes", "Dataset", "DatasetInfo", "DecodeHint", "HintFor", "Sample", "full_decode"]

IGNORE = 255
"""Mask value of pixels that both loss and metrics ignore (VOC's border)."""


@dataclass(frozen=True)
class DatasetInfo:
    """Metadata of a split, known before any sample is read."""

    name: str
    split: str
    classes: Mapping[Task, tuple[str, ...]]
    """Class names of each task that the dataset labels. Segmentation counts ``background`` as class 0;
    classification and detection have no background."""
    multi_label: bool = False
    """Classification labels are sets of classes (VOC) rather than one class (CIFAR-10, ImageNet)."""
    digest: str | None = None
    """Digest of the content of all splits of a prepared dataset, independent of its location; else None."""

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
    """[n] VOC's flag: ignored in training, and neither hit nor miss in evaluation."""


@dataclass(frozen=True)
class Sample:
    """One image and its labels. A label is None where the sample does not have it."""

    key: str
    """Name of the sample, for messages: the file, or the archive and member."""
    image: npt.NDArray[np.uint8]
    """[height, width, 3] RGB; scaled down, and black below the rows needed, as far as a ``DecodeHint`` allows."""
    classification: int | npt.NDArray[np.float32] | None = None
    """Class index; or, for multi-label sets, [classes] with 1 present, 0 absent, -1 unknown (VOC's difficult only)."""
    detection: Boxes | None = None
    segmentation: npt.NDArray[np.uint8] | None = None
    """[height, width] class index, ``IGNORE`` where unknown."""
    stored_shape: tuple[int, int] | None = None
    """Height and width of the stored image, to which boxes and mask refer, if ``image`` may be scaled down."""
    replaces: str | None = None
    """Key of the bad sample that this one replaces, with ``on_bad_sample: skip``. It then has no labels, so it counts
    neither in a loss nor in a metric."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the stored image."""
        return self.stored_shape or self.image.shape[:2]


class DecodeHint(NamedTuple):
    """The smallest scale and the rows of a stored image that must be decoded."""

    divisor: int
    """1, 2, 4 or 8: the image may be scaled down by this factor."""
    rows: int
    """Rows needed from the top, before scaling. Rows below may be black."""


HintFor: TypeAlias = Callable[[int, int], DecodeHint]
"""(height, width) of a stored image -> its ``DecodeHint``."""


def full_decode(height: int, width: int) -> DecodeHint:  # noqa: ARG001  # a `HintFor`
    """The hint to decode the image in full."""
    return DecodeHint(1, height)


class Dataset(Protocol):
    """A split with random access. Instances are picklable, to be sent to loader workers, and open files lazily."""

    @property
    def info(self) -> DatasetInfo: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample. Raises ``DatasetError`` that names the file if it is damaged or wrongly labelled."""
        ...

    def load(self, index: int, hint_for: HintFor) -> Sample:
        """As ``__getitem__``, but of the image only as much as ``hint_for`` requires need be decoded."""
        ...

    def key(self, index: int) -> str:
        """The key of a sample, without decoding it. Equal keys mean the same image, in any split."""
        ...

    def labels(self, index: int) -> frozenset[Task]:
        """The labels that the sample has, without decoding it."""
        ...
