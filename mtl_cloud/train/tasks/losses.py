"""The forward pass with float32 outputs, and the loss terms of all tasks, for training and validation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks.base import LossTerm, Outputs, TaskHead

__all__ = ["Autocast", "forward", "loss_terms", "totals_and_counts"]

Autocast = Callable[[], AbstractContextManager[Any]]


def forward(network: nn.Module, images: Tensor, autocast: Autocast, tasks: Collection[Task] | None = None) -> Outputs:
    """Run the network on ``images`` (0..1) for ``tasks`` (default all); outputs are float32 under any autocast."""
    with autocast():
        outputs = network(images, tasks)
    return {task: _as_float(output) for task, output in outputs.items()}


def _as_float(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, Mapping):
        return {key: _as_float(value) for key, value in output.items()}
    return tuple(_as_float(value) for value in output)


def loss_terms(heads: Mapping[Task, TaskHead], outputs: Outputs, batch: Batch) -> list[LossTerm]:
    """Loss terms in the order of ``heads``; a task without an output has total and count 0."""
    nothing = torch.zeros((), device=batch.images.device)
    return [
        head.loss(outputs[task], batch) if task in outputs else LossTerm(nothing, nothing)
        for task, head in heads.items()
    ]


def totals_and_counts(terms: Sequence[LossTerm]) -> Tensor:
    """Totals and counts of the terms, [2, tasks], without gradient."""
    return torch.stack([torch.stack([t.total.detach() for t in terms]), torch.stack([t.count for t in terms])])
