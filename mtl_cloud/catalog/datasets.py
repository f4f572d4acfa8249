"""The datasets that a job may name: what each labels, how large it is, and which function opens it.

A new dataset needs an entry here and a module in ``mtl_cloud.datasets.formats``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mtl_cloud.tasks import TASKS, Task

__all__ = ["DATASETS", "DatasetName", "KnownDataset"]

DatasetName: TypeAlias = Literal["embedded", "cifar10", "voc", "imagenet"]


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """One dataset as it is published."""

    opener: str
    """``module:function``. The function takes (uri, split) and returns a ``mtl_cloud.datasets.Dataset``."""
    tasks: tuple[Task, ...]
    """The tasks that it labels, in their fixed order."""
    train_images: int
    val_images: int
    gigabytes: float
    """Size of the published files, GB."""
    is_jpeg: bool
    """Whether a loader has JPEGs to decode, which limits its speed."""
    needs_uri: bool = True


DATASETS: Mapping[DatasetName, KnownDataset] = {
    "embedded": KnownDataset(
        opener="mtl_cloud.datasets.formats.embedded:open_embedded",
        tasks=TASKS,
        train_images=4096,
        val_images=512,
        gigabytes=0,
        is_jpeg=False,
        needs_uri=False,
    ),
    "cifar10": KnownDataset(
        opener="mtl_cloud.datasets.formats.cifar10:open_cifar10",
        tasks=("classification",),
        train_images=50_000,
        val_images=10_000,
        gigabytes=0.17,
        is_jpeg=False,
    ),
    "voc": KnownDataset(
        opener="mtl_cloud.datasets.formats.voc:open_voc",
        tasks=TASKS,
        train_images=5717,
        val_images=5823,
        gigabytes=2.0,
        is_jpeg=True,
    ),
    "imagenet": KnownDataset(
        opener="mtl_cloud.datasets.formats.imagenet:open_imagenet",
        tasks=("classification",),
        train_images=1_281_167,
        val_images=50_000,
        gigabytes=154.6,
        is_jpeg=True,
    ),
}
