"""The table of a comparison as a value: a row for each configuration, with measures over its seeds and delta_m."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from mtl_cloud.compare.entry import RoundChoice
from mtl_cloud.tasks import Task

__all__ = ["RECALL", "Comparison", "Delta", "Measure", "Row", "WorkerEffect", "delta_m"]

RECALL: dict[Task, str] = {"classification": "recall_macro", "detection": "recall50", "segmentation": "recall_macro"}
"""Task -> the recall that is shown beside its headline metric."""


@dataclass(frozen=True)
class Measure:
    """A quantity over runs that differ only in their seed."""

    mean: float | None
    std: float | None
    """Sample standard deviation (over n - 1); None for fewer than two values."""
    n: int
    """Number of runs that have a value."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Measure:
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Delta:
    """Multi-task performance of joint runs, in per cent. Its deviation is over the joint runs, not the baselines."""

    measure: Measure
    """Empty (n = 0) if a task has no baseline."""
    baselines: dict[str, tuple[str, ...]]
    """task -> the single-task runs that it was compared with."""
    differs: tuple[str, ...] = ()
    """Fields of the budget in which they differ; empty without ``--force``."""


@dataclass(frozen=True)
class Row:
    """One configuration: runs that differ only in their seed."""

    model: str
    variant: dict[str, str]
    """The fields, as in a job file, that distinguish it from other rows of the same model."""
    tasks: tuple[Task, ...]
    dataset: str
    workers: int
    image_size: int
    batch_size: int
    steps: int
    images: int
    epochs: int
    devices: tuple[str, ...]
    run_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: tuple[int, ...]
    """The round of each run whose metrics are shown."""
    metrics: dict[str, dict[str, Measure]]
    """task -> metric -> value: the task's headline metric and its recall."""
    training_s: Measure
    images_per_s: Measure
    data_wait: Measure
    usd: Measure
    delta: Delta | None = None
    """None for a network of one task."""
    differs: tuple[str, ...] = ()
    """Fields that make it incomparable with the first row; empty without ``--force``."""

    @property
    def label(self) -> str:
        """The model and the fields that distinguish it from other rows of the same model."""
        return " ".join([self.model, *(f"{name}={value}" for name, value in self.variant.items())])


@dataclass(frozen=True)
class WorkerEffect:
    """The same configuration with few and with more loader workers."""

    fewer: Row
    more: Row

    @property
    def speedup(self) -> float | None:
        """Images per second with more workers divided by those with fewer."""
        slow, fast = self.fewer.images_per_s.mean, self.more.images_per_s.mean
        return fast / slow if slow and fast is not None else None


@dataclass(frozen=True)
class Comparison:
    """The table, in the order in which the runs were named."""

    at: RoundChoice
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    workers: tuple[WorkerEffect, ...]
    notes: tuple[str, ...]
    """Limitations that a reader must know."""

    def document(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        effects = [
            {
                "model": effect.more.label,
                "dataset": effect.more.dataset,
                "workers": [effect.fewer.workers, effect.more.workers],
                "images_per_s": [effect.fewer.images_per_s.mean, effect.more.images_per_s.mean],
                "speedup": effect.speedup,
            }
            for effect in self.workers
        ]
        return {
            "at": self.at,
            "tasks": list(self.tasks),
            "rows": [asdict(row) for row in self.rows],
            "workers": effects,
            "notes": list(self.notes),
        }


def delta_m(multi: Mapping[str, float], single: Mapping[str, float], *, lower_is_better: Collection[str] = ()) -> float:
    """Multi-task performance in per cent: ``100 / T * sum_t (-1)^l_t (M_t - S_t) / S_t`` over the tasks of ``multi``.

    l_t is 1 for the tasks in ``lower_is_better``. Source: Maninis et al. 2019 (ASTMT); Vandenhende et al. 2021.
    Raises ``KeyError`` when ``single`` lacks a task, ``ZeroDivisionError`` when its value is 0.
    """
    gains = [(value - single[task]) / single[task] * (-1) ** (task in lower_is_better) for task, value in multi.items()]
    return 100 * fmean(gains)
