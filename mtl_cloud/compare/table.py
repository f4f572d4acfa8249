"""The table of a comparison as a value: a row for each configuration, measures over its seeds, delta_m."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from mtl_cloud.compare.entry import At
from mtl_cloud.tasks import Task

__all__ = ["RECALL", "Comparison", "Delta", "Measure", "Row", "WorkerEffect", "delta_m"]

RECALL: dict[Task, str] = {"classification": "recall_macro", "detection": "recall50", "segmentation": "recall_macro"}
"""Task -> the recall that stands beside its headline metric."""


@dataclass(frozen=True)
class Measure:
    """A quantity over runs that differ in their seed only."""

    mean: float | None
    std: float | None
    """Sample standard deviation (over n - 1); None of fewer than two values."""
    n: int
    """Runs that have a value."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Measure:
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Delta:
    """Multi-task performance of joint runs, per cent. The spread is theirs; the baselines' stands in their own rows."""

    measure: Measure
    """Empty (n = 0) where a task has no baseline."""
    baselines: dict[str, tuple[str, ...]]
    """task -> the single-task runs that it was measured against."""
    differs: tuple[str, ...] = ()
    """Fields of the budget in which they differ: not empty only where the user insisted."""


@dataclass(frozen=True)
class Row:
    """One configuration: runs that differ in their seed only."""

    model: str
    variant: dict[str, str]
    """The fields, as in a job file, that tell it from other rows of the same model."""
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
    """The round of each run that the metrics are of."""
    metrics: dict[str, dict[str, Measure]]
    """task -> metric -> value: the task's headline and its recall."""
    training_s: Measure
    images_per_s: Measure
    data_wait: Measure
    usd: Measure
    delta: Delta | None = None
    """None for a network of one task."""
    differs: tuple[str, ...] = ()
    """Fields in which it cannot be compared with the first row: not empty only where the user insisted."""

    @property
    def label(self) -> str:
        """The model with what tells it from others of its name."""
        return " ".join([self.model, *(f"{name}={value}" for name, value in self.variant.items())])


@dataclass(frozen=True)
class WorkerEffect:
    """The same configuration with few and with more loader workers."""

    fewer: Row
    more: Row

    @property
    def speedup(self) -> float | None:
        """Images a second with more workers over those with fewer."""
        slow, fast = self.fewer.images_per_s.mean, self.more.images_per_s.mean
        return fast / slow if slow and fast is not None else None


@dataclass(frozen=True)
class Comparison:
    """The table, in the order in which the runs were named."""

    at: At
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    workers: tuple[WorkerEffect, ...]
    notes: tuple[str, ...]
    """What a reader must know to trust it."""

    def document(self) -> dict[str, Any]:
        """As JSON values."""
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
