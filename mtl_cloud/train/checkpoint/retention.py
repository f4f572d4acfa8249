"""Checkpoints to keep besides the newest: the best round's, all rounds', and the target of a rewind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from mtl_cloud.jobspec.job import BestSpec, JobSpec
from mtl_cloud.runs.schema import RoundRecord
from mtl_cloud.tasks import mean_headline

__all__ = ["Retention", "best_of"]


class Retention:
    """Tracks the best round of a run, and the steps to keep."""

    def __init__(self, job: JobSpec, steps_per_round: int) -> None:
        self._job = job
        self._steps_per_round = steps_per_round
        self._best: RoundRecord | None = None
        """None without ``checkpoint.keep_best``."""

    def observe(self, *rounds: RoundRecord) -> None:
        """Update the best round with these rounds."""
        if (spec := self._job.checkpoint.keep_best) is not None:
            self._best = best_of(filter(None, [self._best, *rounds]), spec)

    def with_best(self, record: RoundRecord) -> RoundRecord:
        """The record of a round that has just ended, with the fields of the best round set."""
        self.observe(record)
        spec, best = self._job.checkpoint.keep_best, self._best
        if spec is None or best is None:
            return record
        return replace(record, best_round=best.round, best_metric=spec.metric, best_value=_value(best, spec.metric))

    def pinned(self, rounds_closed: int) -> frozenset[int]:
        """Steps whose checkpoints are kept after ``rounds_closed`` rounds."""
        pinned = set[int]()
        if self._job.training.on_divergence == "rewind":
            pinned.add(rounds_closed * self._steps_per_round)
        if self._job.checkpoint.keep_rounds:
            pinned.update(number * self._steps_per_round for number in range(1, self._job.training.rounds + 1))
        if self._best is not None:
            pinned.add(self._best.step)
        return frozenset(pinned)


def best_of(rounds: Iterable[RoundRecord], spec: BestSpec) -> RoundRecord | None:
    """The earliest of the best rounds; None if the metric has no value in any of them."""
    valued = [(value, record) for record in rounds if (value := _value(record, spec.metric)) is not None]
    minimize = spec.mode == "min" or (spec.mode is None and (spec.metric or "").endswith("/loss"))
    sign = -1 if minimize else 1
    return max(valued, key=lambda found: (sign * found[0], -found[1].round))[1] if valued else None


def _value(record: RoundRecord, metric: str | None) -> float | None:
    if metric is None:
        return mean_headline(record.metrics)
    task, _, name = metric.partition("/")
    value = record.val_losses.get(task) if name == "loss" else record.metrics.get(task, {}).get(name)
    return value if value is not None and math.isfinite(value) else None
