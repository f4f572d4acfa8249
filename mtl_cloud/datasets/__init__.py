"""Datasets by name: open the splits of a job, join several datasets, and check that the splits share no image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TypeAlias

from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.datasets.base import IGNORE, Boxes, Dataset, DatasetInfo, Sample
from mtl_cloud.datasets.shards import is_prepared, open_shards
from mtl_cloud.datasets.wrappers import JointDataset, Selection, SkippingDataset, restrict
from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.job import DatasetSpec
from mtl_cloud.storage import Storage, open_storage
from mtl_cloud.tasks import Task

__all__ = [
    "IGNORE",
    "Boxes",
    "Dataset",
    "DatasetInfo",
    "JointDataset",
    "Sample",
    "assert_disjoint",
    "open_dataset",
    "open_splits",
    "restrict",
]

_Opener: TypeAlias = Callable[[str | None, str], Dataset]
Connect: TypeAlias = Callable[[str], Storage]
"""A URL -> its storage."""


def open_dataset(spec: DatasetSpec, split: str, *, connect: Connect = open_storage) -> Dataset:
    """One split as the job specifies it: its tasks, ``on_bad_sample``, and ``max_*_samples`` for this split.

    Remote data is read through ``connect(uri)``.

    Raises
    ------
    DatasetError
        The dataset does not exist, lacks the split or one of the tasks, or its lists and folders contradict each other.
        Samples are not read yet: a damaged one raises when it is read.
    """
    dataset = _select(_open(spec, split, connect), spec.tasks, _limit(spec, split))
    return SkippingDataset(dataset) if spec.on_bad_sample == "skip" else dataset


def open_splits(*specs: DatasetSpec, connect: Connect = open_storage) -> tuple[Dataset, Dataset]:
    """The train and the val split of a job's datasets, joined if there are several; ``connect`` as above.

    Raises
    ------
    DatasetError
        As in ``open_dataset`` and ``JointDataset``; or the splits share an image, or differ in their classes.
    """
    train = _join([open_dataset(spec, spec.splits.train, connect=connect) for spec in specs])
    val = _join([open_dataset(spec, spec.splits.val, connect=connect) for spec in specs])
    assert_disjoint(train, val)
    if train.info.classes != val.info.classes:
        raise DatasetError(
            f"the splits {train.info.split} and {val.info.split} of {train.info.name} do not label the same classes",
            hint="train and validate on the same tasks and classes: correct `splits:` or `tasks:`",
        )
    return train, val


def assert_disjoint(train: Dataset, val: Dataset) -> None:
    """Raises ``DatasetError`` that names the first images that are in both splits."""
    held_out = {val.key(i) for i in range(len(val))}
    leaked = [key for key in map(train.key, range(len(train))) if key in held_out]
    if leaked:
        raise DatasetError(
            f"{len(leaked)} images of {train.info.name} are in both splits, {train.info.split} and {val.info.split}: "
            f"{', '.join(leaked[:3])}{', …' if len(leaked) > 3 else ''}",
            hint="metrics on training images are meaningless: choose `splits:` without common images",
        )


def _open(spec: DatasetSpec, split: str, connect: Connect) -> Dataset:
    if spec.uri is not None and is_prepared(spec.uri):
        return open_shards(spec.uri, split, name=spec.name, connect=connect)
    module, _, function = DATASETS[spec.name].opener.partition(":")
    opener: _Opener = getattr(import_module(module), function)
    return opener(spec.uri, split)


def _limit(spec: DatasetSpec, split: str) -> int | None:
    return spec.max_train_samples if split == spec.splits.train else spec.max_val_samples


def _select(dataset: Dataset, tasks: Sequence[Task] | None, limit: int | None) -> Dataset:
    known = dataset.info.tasks
    if unknown := [task for task in tasks or () if task not in known]:
        raise DatasetError(
            f"{dataset.info.name} {dataset.info.split} has no labels for {', '.join(unknown)}",
            hint=f"it labels {', '.join(known)}: correct the dataset's `tasks:`",
        )
    kept = tuple(task for task in known if tasks is None or task in tasks)
    labelled = restrict(dataset, kept)
    if limit is None or limit >= len(labelled):
        return labelled
    # Evenly over the split: ImageNet is sorted by class, and its first thousand images show the same fish.
    return Selection(labelled, [i * len(labelled) // limit for i in range(limit)], kept)


def _join(datasets: Sequence[Dataset]) -> Dataset:
    return datasets[0] if len(datasets) == 1 else JointDataset(datasets)
