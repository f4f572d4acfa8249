"""Backward passes of a joint step: one for the weighted sum of the tasks' losses, or one for each task.

Both leave the gradients of the global batch, multiplied by the loss scaler's scale, in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.optim.gradient_weighting import GradientWeighting
from mtl_cloud.train.optim.loss_weighting import LossWeighting

__all__ = ["Backward", "SummedBackward", "TaskwiseBackward"]

Column: TypeAlias = tuple[Tensor | None, ...]
"""One parameter's gradient from each present task; None where the task's loss does not reach it."""


class Backward(Protocol):
    """Computes the gradients of one step. They must be None before."""

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        """Fill the parameters' ``grad``.

        ``losses``: one scalar per task, with a graph of its own; its value is that of the global batch, its gradient
        that of this process's share. ``present`` [tasks] bool: whether any sample of the global batch has the task's
        label.
        """
        ...


@dataclass(frozen=True)
class SummedBackward:
    """Backpropagates the weighted sum of losses through the data-parallel wrapper."""

    weighting: LossWeighting
    scaler: torch.amp.GradScaler
    group: ProcessGroup

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        tasks = self.weighting.tasks
        objective = self.weighting.combine(
            dict(zip(tasks, losses, strict=True)), dict(zip(tasks, present.float().unbind(), strict=True))
        )
        # The data-parallel wrapper averages gradients, hence the factor. It does not wrap the weighting's parameters.
        self.scaler.scale(objective * self.group.world).backward()
        for parameter in self.weighting.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.group.world


@dataclass(frozen=True)
class TaskwiseBackward:
    """Computes each task's gradient separately, sums it over the processes, and combines the tasks' gradients.

    A parameter is shared if the losses of several present tasks reach it in this step's graph. The weighting combines
    the gradients of shared parameters. A parameter that only one task reaches takes that task's gradient; a parameter
    that no present task reaches has none.

    The combination is not linear, so the sum over processes comes first: the network must *not* be wrapped for
    data-parallel training. Waits for the device once per step, for the inner products.
    """

    weighting: GradientWeighting
    parameters: Sequence[nn.Parameter]
    scaler: torch.amp.GradScaler
    group: ProcessGroup

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        tasks = present.nonzero().flatten().tolist()
        if not tasks:
            return self._set_gradients(map(torch.zeros_like, self.parameters))
        gradients = [self._gradients(losses[task], keep_graph=task != tasks[-1]) for task in tasks]
        columns = list(zip(*gradients, strict=True))
        shared = [column for column in columns if _task_count(column) > 1]
        ones = [1.0] * len(tasks)
        factors = self._factors(shared, torch.stack([losses[task] for task in tasks]), tasks) if shared else ones
        unshared = factors if self.weighting.scales_unshared else ones
        return self._set_gradients(_sum(column, factors if _task_count(column) > 1 else unshared) for column in columns)

    def _gradients(self, loss: Tensor, *, keep_graph: bool) -> list[Tensor | None]:
        """The loss's gradient for each parameter, summed over all processes; None where the graph does not reach it."""
        scaled = self.scaler.scale(loss)
        found: list[Tensor | None] = list(
            torch.autograd.grad(scaled, self.parameters, retain_graph=keep_graph, allow_unused=True)
        )
        if self.group.world == 1:
            return found
        reached = [gradient for gradient in found if gradient is not None]
        total = self.group.sum(torch.cat([gradient.flatten() for gradient in reached]))
        pieces = iter(torch.split(total, [gradient.numel() for gradient in reached]))
        return [None if gradient is None else next(pieces).view_as(gradient) for gradient in found]

    def _factors(self, shared: Sequence[Column], losses: Tensor, tasks: list[int]) -> list[float]:
        """Factors [P] of the present tasks. The loss scale is divided out, because some methods depend on the norms."""
        gramian = reduce(torch.add, map(_inner_products, shared)).cpu() / self.scaler.get_scale() ** 2
        factors: list[float] = self.weighting.factors(gramian, losses.detach().double().cpu(), tasks).tolist()
        return factors

    def _set_gradients(self, gradients: Iterable[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def _task_count(column: Column) -> int:
    """Number of tasks that reach the parameter."""
    return sum(gradient is not None for gradient in column)


def _inner_products(column: Column) -> Tensor:
    """Inner products of the tasks' gradients of one parameter, [P, P] float64."""
    template = next(gradient for gradient in column if gradient is not None)
    rows = torch.stack([(torch.zeros_like(template) if g is None else g).flatten() for g in column])
    return (rows @ rows.T).double()


def _sum(column: Column, factors: Sequence[float]) -> Tensor | None:
    terms = [factor * gradient for factor, gradient in zip(factors, column, strict=True) if gradient is not None]
    return reduce(torch.add, terms) if terms else None
