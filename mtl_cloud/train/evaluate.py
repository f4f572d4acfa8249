"""One pass over the validation split: losses and metrics of every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.meters import LossMeter
from mtl_cloud.train.tasks.base import Evaluator, TaskHead, TaskMetrics
from mtl_cloud.train.tasks.losses import Autocast, forward, loss_terms, totals_and_counts

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """Results over all processes. ``metrics`` holds only tasks with a labelled sample."""

    losses: dict[Task, float | None]
    metrics: dict[Task, TaskMetrics]
    skipped: frozenset[str]
    """Keys of the damaged samples that were skipped."""


def validate(
    network: nn.Module,
    heads: Mapping[Task, TaskHead],
    batches: Iterable[Batch],
    *,
    group: ProcessGroup,
    autocast: Autocast,
    interrupted: Callable[[], bool],
) -> Validation | None:
    """Evaluate ``network`` and leave it in evaluation mode. Returns None if any process was ``interrupted``."""
    network.eval()
    evaluators: dict[Task, Evaluator] = {task: head.evaluator() for task, head in heads.items()}
    meter = LossMeter(tuple(heads), group.device)
    stopped, skipped = False, set[str]()
    with torch.inference_mode():
        for host_batch in batches:
            stopped = stopped or interrupted()
            if stopped:
                break
            skipped.update(host_batch.skipped)
            batch = host_batch.to(group.device)
            outputs = forward(network, batch.floats(), autocast)
            meter.add(*totals_and_counts(loss_terms(heads, outputs, batch)))
            for task, evaluator in evaluators.items():
                evaluator.update(outputs[task], batch)
    return None if group.any(stopped) else _reduce(evaluators, meter, skipped, group)


def _reduce(evaluators: dict[Task, Evaluator], meter: LossMeter, skipped: set[str], group: ProcessGroup) -> Validation:
    meter.totals, meter.counts = group.sum(meter.totals), group.sum(meter.counts)
    first, *others = group.gather(evaluators)
    for other in others:
        for task, evaluator in first.items():
            evaluator.merge(other[task])
    losses = meter.means()
    metrics = {task: e.compute() for task, e in first.items() if losses[task] is not None}
    return Validation(losses, metrics, frozenset().union(*group.gather(skipped)))
