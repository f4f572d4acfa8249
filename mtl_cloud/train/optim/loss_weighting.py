"""How the tasks' losses become one: each method says by what factor each task's gradient counts in a step.

These methods need the losses' values only: one backward pass, no word between processes, no wait for the device.
Methods that need each task's gradient apart (PCGrad, MGDA, ...) are in ``gradient_weighting``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import LossWeightingSpec
from mtl_cloud.tasks import Task

__all__ = ["LossWeighting", "Weighting", "build_weighting"]

_TINY = 1e-8  # losses are not negative; one of nothing must not divide by nothing


class Weighting(nn.Module):
    """What all methods have in common: each task's factor, and a state that ``state_dict()`` holds whole."""

    latest: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self._remember(latest=1.0)

    def weights(self) -> dict[Task, float]:
        """The factor of each task's gradient when it was last present. Waits for the device."""
        return dict(zip(self.tasks, self.latest.tolist(), strict=True))

    def end_epoch(self, mean_losses: Mapping[Task, float]) -> None:
        """Called after each epoch with its mean losses; a task without a sample is left out."""

    def _remember(self, **entries: float) -> None:
        """Add buffers of one entry a task."""
        for name, value in entries.items():
            self.register_buffer(name, torch.full((len(self.tasks),), value))


class LossWeighting(Weighting):
    """Base of all methods of this module: factors of 1, the plain sum.

    With several processes, a loss must be the global batch's in value and this process's share in gradient. Every
    process then holds the same state without any exchange, and the gradients of ``parameters()`` are equal too.
    """

    def combine(self, losses: Mapping[Task, Tensor], present: Mapping[Task, Tensor]) -> Tensor:
        """The scalar to minimise.

        ``losses``: scalars, not negative. ``present``: scalars, 1 where some sample of the global batch carries the
        task's label, else 0; such a task neither counts nor changes what the method remembers of it.
        """
        values = torch.stack([losses[task] for task in self.tasks])
        here = torch.stack([present[task] for task in self.tasks])
        factors = self._factors(values.detach(), here)
        self.latest.copy_(factors.detach().where(here > 0, self.latest))
        return (factors * values * here).sum() + self._penalty(here)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:  # noqa: ARG002  # other methods look at here
        """[tasks] factors from [tasks] losses and presence; entries of absent tasks are finite and do not matter."""
        return torch.ones_like(values)

    def _penalty(self, here: Tensor) -> Tensor | float:  # noqa: ARG002  # other methods look at here
        """What the method's own parameters cost."""
        return 0.0


class _Equal(LossWeighting):
    """Each loss over its own initial size, so that tasks of unlike scale count alike.

    The size is the exponential moving average (decay 0.97, unbiased) over the task's first 100 labelled steps, and
    stands from then on: the objective does not move any more. A task's factor depends on its own loss alone.
    """

    average: Tensor
    steps: Tensor

    _DECAY, _STEPS = 0.97, 100

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self._remember(average=0.0, steps=0.0)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:
        learning = here * (self.steps < self._STEPS)
        self.average.lerp_(values, learning * (1 - self._DECAY))
        self.steps.add_(learning)
        size = self.average / (1 - self._DECAY**self.steps).clamp(min=_TINY)
        return 1 / size.clamp(min=_TINY)


class _Fixed(LossWeighting):
    """The job's own weights."""

    fixed: Tensor

    def __init__(self, tasks: Sequence[Task], weights: Mapping[Task, float]) -> None:
        super().__init__(tasks)
        # Of the job file, not of the state: a resumed job may not change it anyway.
        self.register_buffer("fixed", torch.tensor([weights.get(task, 1.0) for task in self.tasks]), persistent=False)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:  # noqa: ARG002  # the job says it all
        return self.fixed


class _Uncertainty(LossWeighting):
    """Homoscedastic uncertainty (Kendall et al. 2018): sum of loss * exp(-s) / 2 + s / 2, with s = log variance."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:  # noqa: ARG002  # learned from the loss's gradient
        return (-self.log_variance).exp() / 2

    def _penalty(self, here: Tensor) -> Tensor:
        return (self.log_variance * here).sum() / 2


class _DynamicAverage(LossWeighting):
    """Dynamic weight average (Liu et al. 2019): tasks * softmax(r / temperature), r = the last epoch's loss over the
    one before. Until a task has been seen in two epochs its r is 1, a loss that stands still.
    """

    older: Tensor
    newer: Tensor
    factors: Tensor

    def __init__(self, tasks: Sequence[Task], temperature: float) -> None:
        super().__init__(tasks)
        self.temperature = temperature
        self._remember(older=torch.nan, newer=torch.nan, factors=1.0)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:  # noqa: ARG002  # constant within an epoch
        return self.factors

    def end_epoch(self, mean_losses: Mapping[Task, float]) -> None:
        for index, task in enumerate(self.tasks):
            if task in mean_losses:
                self.older[index], self.newer[index] = self.newer[index].clone(), mean_losses[task]
        rates = (self.newer / self.older.clamp(min=_TINY)).nan_to_num(1.0)
        self.factors.copy_(len(self.tasks) * (rates / self.temperature).softmax(0))


class _Random(LossWeighting):
    """Random loss weighting (Lin et al. 2022): softmax of a standard normal draw, anew each step.

    All processes draw the same, whatever else they draw: the generator is the method's own.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        super().__init__(tasks)
        self.generator = torch.Generator().manual_seed(seed)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:  # noqa: ARG002  # blind on purpose
        drawn = torch.randn(len(self.tasks), generator=self.generator).softmax(0)
        return drawn.to(values, non_blocking=True)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class _Geometric(LossWeighting):
    """The geometric mean of the present losses (Chennupati et al. 2019): it falls by the same share with each."""

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:
        values, n = values.clamp(min=_TINY), here.sum().clamp(min=1)
        return ((values.log() * here).sum() / n).exp() / (n * values)


class _Famo(LossWeighting):
    """Fast adaptive multitask optimization (Liu et al. 2023): weights that let all losses fall at an equal rate.

    Minimises sum of z * log(loss), z a softmax over learned logits, scaled so that the factors sum to 1. Adam (rate
    0.025, weight decay 0.001) turns the logits towards tasks whose log-loss fell less. That fall is taken from one
    batch with the task's label to the next, where the paper runs the network a second time on the same batch.
    """

    logits: Tensor
    momentum: Tensor
    variance: Tensor
    updates: Tensor
    previous: Tensor

    _RATE, _WEIGHT_DECAY, _BETA1, _BETA2 = 0.025, 1e-3, 0.9, 0.999

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self._remember(logits=0.0, momentum=0.0, variance=0.0, updates=0.0, previous=torch.nan)

    def _factors(self, values: Tensor, here: Tensor) -> Tensor:
        log_losses = (values + _TINY).log()
        self._learn(self.previous - log_losses, here * ~self.previous.isnan())
        self.previous.copy_(log_losses.where(here > 0, self.previous))
        shares = self._softmax(here) / (values + _TINY)
        return shares / shares.sum().clamp(min=_TINY)

    def _softmax(self, among: Tensor) -> Tensor:
        shares = (self.logits - self.logits.max()).exp() * among
        return shares / shares.sum().clamp(min=_TINY)

    def _learn(self, falls: Tensor, among: Tensor) -> None:
        """One step of Adam on the logits of the tasks ``among``, whose log-losses fell by ``falls``."""
        z, falls = self._softmax(among), falls.nan_to_num()
        gradient = z * (falls - (z * falls).sum()) + self._WEIGHT_DECAY * self.logits
        self.updates.add_(among)
        self.momentum.lerp_(gradient, among * (1 - self._BETA1))
        self.variance.lerp_(gradient**2, among * (1 - self._BETA2))
        momentum = self.momentum / (1 - self._BETA1**self.updates).clamp(min=_TINY)
        variance = self.variance / (1 - self._BETA2**self.updates).clamp(min=_TINY)
        self.logits.sub_(among * self._RATE * momentum / (variance.sqrt() + _TINY))


def build_weighting(spec: LossWeightingSpec, tasks: Sequence[Task], *, seed: int = 0) -> LossWeighting:
    """The method that ``spec`` names, over ``tasks``. ``seed`` serves ``rlw`` and must be the same in all processes."""
    return _METHODS[spec.name](tasks, spec, seed)


_METHODS: dict[str, Callable[[Sequence[Task], LossWeightingSpec, int], LossWeighting]] = {
    "equal": lambda tasks, _spec, _seed: _Equal(tasks),
    "fixed": lambda tasks, spec, _seed: _Fixed(tasks, spec.weights),
    "uncertainty": lambda tasks, _spec, _seed: _Uncertainty(tasks),
    "dwa": lambda tasks, spec, _seed: _DynamicAverage(tasks, spec.temperature),
    "rlw": lambda tasks, _spec, seed: _Random(tasks, seed),
    "geometric": lambda tasks, _spec, _seed: _Geometric(tasks),
    "famo": lambda tasks, _spec, _seed: _Famo(tasks),
}
