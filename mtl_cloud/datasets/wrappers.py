"""Dataset wrappers: select samples and tasks, skip bad samples, join several datasets into one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from mtl_cloud.datasets.base import Dataset, DatasetInfo, HintFor, Sample, full_decode
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import TASKS, Task

__all__ = ["JointDataset", "Selection", "SkippingDataset", "restrict"]

_MAX_CONSECUTIVE_BAD = 100
"""More bad samples in a row mean that the whole dataset is unusable, e.g. its disk is gone."""


@dataclass(frozen=True)
class Selection:
    """Some samples of a dataset, with some of their labels."""

    dataset: Dataset
    indices: Sequence[int]
    tasks: tuple[Task, ...]
    """Labels to keep."""

    @cached_property
    def info(self) -> DatasetInfo:
        info = self.dataset.info
        return replace(info, classes={task: info.classes[task] for task in self.tasks})

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return _without(self.dataset.load(self.indices[index], hint_for), frozenset(TASKS).difference(self.tasks))

    def key(self, index: int) -> str:
        return self.dataset.key(self.indices[index])

    def labels(self, index: int) -> frozenset[Task]:
        return self.dataset.labels(self.indices[index]).intersection(self.tasks)


def restrict(dataset: Dataset, tasks: Collection[Task]) -> Dataset:
    """Only labels of ``tasks``, and only samples that have one of them. Joined datasets stay joined."""
    if isinstance(dataset, JointDataset):
        parts = [restrict(part, tasks) for part in dataset.datasets]
        return JointDataset([part for part in parts if part.info.tasks] or parts)
    kept = tuple(task for task in dataset.info.tasks if task in tasks)
    if kept == dataset.info.tasks:
        return dataset
    indices = [i for i in range(len(dataset)) if dataset.labels(i).intersection(kept)]
    return Selection(_with_tasks(dataset, frozenset(kept)), indices, kept)


@runtime_checkable
class _HasWithTasks(Protocol):
    """A dataset that need not read unused labels."""

    def with_tasks(self, tasks: frozenset[Task]) -> Dataset: ...


def _with_tasks(dataset: Dataset, tasks: frozenset[Task]) -> Dataset:
    if isinstance(dataset, Selection | SkippingDataset):
        return replace(dataset, dataset=_with_tasks(dataset.dataset, tasks))
    return dataset.with_tasks(tasks) if isinstance(dataset, _HasWithTasks) else dataset


@dataclass(frozen=True)
class SkippingDataset:
    """A dataset whose bad samples are replaced instead of ending the run.

    A bad sample is replaced by the image of the next good one, without labels and with ``replaces`` set to the bad
    one's key. So no other sample has more weight in a loss or counts twice in a metric, and the replacement depends on
    the index only.
    """

    dataset: Dataset

    @property
    def info(self) -> DatasetInfo:
        return self.dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        try:
            return self.dataset.load(index, hint_for)
        except DatasetError as error:
            return self._replacement(index, error)

    def key(self, index: int) -> str:
        return self.dataset.key(index)

    def labels(self, index: int) -> frozenset[Task]:
        return self.dataset.labels(index)

    def _replacement(self, bad: int, error: DatasetError) -> Sample:
        for step in range(1, min(_MAX_CONSECUTIVE_BAD, len(self))):
            try:
                sample = self.dataset[(bad + step) % len(self)]
            except DatasetError:
                continue
            return replace(_without(sample, frozenset(TASKS)), replaces=self.key(bad))
        raise DatasetError(
            f"{self.info.name} {self.info.split}: too many consecutive samples are bad; the first: {error}",
            hint=error.hint,
        ) from error


def _without(sample: Sample, tasks: frozenset[Task]) -> Sample:
    absent: dict[str, Any] = dict.fromkeys(tasks)
    return replace(sample, **absent)


class JointDataset:
    """Datasets that label different tasks, concatenated: first all samples of the first one, and so on.

    Raises
    ------
    DatasetError
        Two of them label the same task with different classes, or classification once as one class and once as a set.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = tuple(datasets)
        self.info = _merge([dataset.info for dataset in self.datasets])
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        which, i = self.locate(index)
        return self.datasets[which].load(i, hint_for)

    def key(self, index: int) -> str:
        which, i = self.locate(index)
        return self.datasets[which].key(i)

    def labels(self, index: int) -> frozenset[Task]:
        which, i = self.locate(index)
        return self.datasets[which].labels(i)

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the dataset that holds the sample, and its index there. Raises ``IndexError``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        return which, index - (self._ends[which - 1] if which else 0)


def _merge(infos: Sequence[DatasetInfo]) -> DatasetInfo:
    labelled_by: dict[Task, DatasetInfo] = {}
    for info in infos:
        for task in info.tasks:
            _assert_same_labels(task, labelled_by.setdefault(task, info), info)
    return DatasetInfo(
        name="+".join(info.name for info in infos),
        split="+".join(info.split for info in infos),
        classes={task: labelled_by[task].classes[task] for task in TASKS if task in labelled_by},
        multi_label="classification" in labelled_by and labelled_by["classification"].multi_label,
    )


def _assert_same_labels(task: Task, one: DatasetInfo, other: DatasetInfo) -> None:
    if one.classes[task] != other.classes[task]:
        difference = f"with other classes ({len(one.classes[task])} and {len(other.classes[task])})"
    elif task == "classification" and one.multi_label != other.multi_label:
        difference = "once as one class and once as a set of classes"
    else:
        return
    raise DatasetError(
        f"the datasets {one.name} and {other.name} both label {task}, {difference}",
        hint=f"give each dataset its own `tasks:`, with {task} in only one of them",
    )
