"""From the tasks' losses to the parameters' gradients: one backward pass for their sum, or one for each task.

Both leave in every process the gradients of the global batch, multiplied by the loss scaler's scale.
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
    """Fills the gradients of one step; they are None before."""

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        """``losses``: scalars, in value the global batch's, in gradient this process's share, each with its own graph.

        ``present`` [tasks] bool: does some sample of the global batch carry the task's label?
        """
        ...


@dataclass(frozen=True)
class SummedBackward:
    """The weighted sum of losses, through the data-parallel wrapper."""

    weighting: LossWeighting
    scaler: torch.amp.GradScaler
    group: ProcessGroup

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        tasks = self.weighting.tasks
        objective = self.weighting.combine(
            dict(zip(tasks, losses, strict=True)), dict(zip(tasks, present.float().unbind(), strict=True))
        )
        # The data-parallel wrapper averages gradients, hence the factor; the weighting's own are not wrapped.
        self.scaler.scale(objective * self.group.world).backward()
        for parameter in self.weighting.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.group.world


@dataclass(frozen=True)
class TaskwiseBackward:
    """Each task's gradient apart, summed over the processes, then combined.

    Shared are the parameters that the losses of several present tasks reach in the graph of this very step, through
    whatever stage, exchange or joint layer. On them the combination is that of the weighting; a parameter that one
    task alone reaches takes that task's gradient. One that no present task reaches keeps none.

    The combination is not linear, so the sum over processes comes before it: the network must *not* be wrapped for
    data-parallel training. Waits for the device once a step, for the inner products.
    """

    weighting: GradientWeighting
    parameters: Sequence[nn.Parameter]
    scaler: torch.amp.GradScaler
    group: ProcessGroup

    def __call__(self, losses: Sequence[Tensor], present: Tensor) -> None:
        tasks = present.nonzero().flatten().tolist()
        if not tasks:
            return self._take(map(torch.zeros_like, self.parameters))
        gradients = [self._gradients(losses[task], keep_graph=task != tasks[-1]) for task in tasks]
        columns = list(zip(*gradients, strict=True))
        shared = [column for column in columns if _reached(column) > 1]
        ones = [1.0] * len(tasks)
        factors = self._factors(shared, torch.stack([losses[task] for task in tasks]), tasks) if shared else ones
        own = factors if self.weighting.scales_own else ones
        return self._take(_sum(column, factors if _reached(column) > 1 else own) for column in columns)

    def _gradients(self, loss: Tensor, *, keep_graph: bool) -> list[Tensor | None]:
        """The loss's gradient for each parameter over all processes; None where the graph does not reach it."""
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
        """[P] from gradients without the scaler's scale: to some methods their size matters."""
        gramian = reduce(torch.add, map(_inner_products, shared)).cpu() / self.scaler.get_scale() ** 2
        factors: list[float] = self.weighting.factors(gramian, losses.detach().double().cpu(), tasks).tolist()
        return factors

    def _take(self, gradients: Iterable[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def _reached(column: Column) -> int:
    """By how many tasks."""
    return sum(gradient is not None for gradient in column)


def _inner_products(column: Column) -> Tensor:
    """[P, P] float64."""
    size = next(gradient for gradient in column if gradient is not None)
    rows = torch.stack([(torch.zeros_like(size) if g is None else g).flatten() for g in column])
    return (rows @ rows.T).double()


def _sum(column: Column, factors: Sequence[float]) -> Tensor | None:
    terms = [factor * gradient for factor, gradient in zip(factors, column, strict=True) if gradient is not None]
    return reduce(torch.add, terms) if terms else None
