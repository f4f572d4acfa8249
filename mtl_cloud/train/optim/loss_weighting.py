"""Loss weighting: methods that compute the factor of each task's loss in a step.

These methods use only the values of the losses, so a step needs one backward pass, no further communication between
processes and no wait for the device. Methods that use each task's gradient (PCGrad, MGDA, ...) are in
``gradient_weighting``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import LossWeightingSpec
from mtl_cloud.tasks import Task

__all__ = ["LossWeighting", "TaskWeighting", "build_loss_weighting"]

_TINY = 1e-8  # prevents division by a loss of 0; losses are not negative


class TaskWeighting(nn.Module):
    """Base of loss and gradient weightings: each task's factor, and a state that ``state_dict()`` holds completely."""

    latest: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self._add_buffers(latest=1.0)

    def weights(self) -> dict[Task, float]:
        """The factor of each task in the last step in which it was present. Waits for the device."""
        return dict(zip(self.tasks, self.latest.tolist(), strict=True))

    def end_epoch(self, mean_losses: Mapping[Task, float]) -> None:
        """Receive the mean losses of an epoch that has ended. Tasks without a sample are missing."""

    def _add_buffers(self, **entries: float) -> None:
        """Register buffers with one entry per task, filled with the given values."""
        for name, value in entries.items():
            self.register_buffer(name, torch.full((len(self.tasks),), value))


class LossWeighting(TaskWeighting):
    """Base of all methods of this module. Its own factors are 1, which gives the plain sum.

    With several processes, each loss must have the value of the global batch and the gradient of this process's share.
    Every process then computes the same state without communication, and the same gradients of ``parameters()``.
    """

    def combine(self, losses: Mapping[Task, Tensor], present: Mapping[Task, Tensor]) -> Tensor:
        """The scalar to minimise.

        ``losses``: scalars, not negative. ``present``: scalars, 1 if any sample of the global batch has the task's
        label, else 0. An absent task contributes nothing, and its entries of the method's state do not change.
        """
        values = torch.stack([losses[task] for task in self.tasks])
        mask = torch.stack([present[task] for task in self.tasks])
        factors = self._factors(values.detach(), mask)
        self.latest.copy_(factors.detach().where(mask > 0, self.latest))
        return (factors * values * mask).sum() + self._penalty(mask)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # other methods use present
        """Factors [tasks] from losses and presence [tasks]. Those of absent tasks must be finite and are not used."""
        return torch.ones_like(values)

    def _penalty(self, present: Tensor) -> Tensor | float:  # noqa: ARG002  # other methods use present
        """Regularisation of the method's own parameters."""
        return 0.0


class _Equal(LossWeighting):
    """Divides each loss by its initial size, so that tasks of different scale count equally.

    The size is the exponential moving average (decay 0.97, bias-corrected) over the task's first 100 labelled steps.
    After them it is constant, and so is the objective. A task's factor depends only on its own loss.
    """

    average: Tensor
    steps: Tensor

    _DECAY, _STEPS = 0.97, 100

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self._add_buffers(average=0.0, steps=0.0)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:
        learning = present * (self.steps < self._STEPS)
        self.average.lerp_(values, learning * (1 - self._DECAY))
        self.steps.add_(learning)
        size = self.average / (1 - self._DECAY**self.steps).clamp(min=_TINY)
        return 1 / size.clamp(min=_TINY)


class _Fixed(LossWeighting):
    """Weights from the job file."""

    fixed: Tensor

    def __init__(self, tasks: Sequence[Task], weights: Mapping[Task, float]) -> None:
        super().__init__(tasks)
        # Not persistent: the weights come from the job file, which a resumed job may not change.
        self.register_buffer("fixed", torch.tensor([weights.get(task, 1.0) for task in self.tasks]), persistent=False)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # the job says it all
        return self.fixed


class _Uncertainty(LossWeighting):
    """Homoscedastic uncertainty (Kendall et al. 2018): sum of loss * exp(-s) / 2 + s / 2, with s = log variance."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # learned from the loss's gradient
        return (-self.log_variance).exp() / 2

    def _penalty(self, present: Tensor) -> Tensor:
        return (self.log_variance * present).sum() / 2


class _DynamicAverage(LossWeighting):
    """Dynamic weight average (Liu et al. 2019): factors are number of tasks * softmax(r / temperature).

    r is the last epoch's loss divided by that of the epoch before, or 1 until a task has losses of two epochs.
    """

    older: Tensor
    newer: Tensor
    factors: Tensor

    def __init__(self, tasks: Sequence[Task], temperature: float) -> None:
        super().__init__(tasks)
        self.temperature = temperature
        self._add_buffers(older=torch.nan, newer=torch.nan, factors=1.0)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # constant within an epoch
        return self.factors

    def end_epoch(self, mean_losses: Mapping[Task, float]) -> None:
        for index, task in enumerate(self.tasks):
            if task in mean_losses:
                self.older[index], self.newer[index] = self.newer[index].clone(), mean_losses[task]
        rates = (self.newer / self.older.clamp(min=_TINY)).nan_to_num(1.0)
        self.factors.copy_(len(self.tasks) * (rates / self.temperature).softmax(0))


class _Random(LossWeighting):
    """Random loss weighting (Lin et al. 2022): softmax of a new standard normal draw in each step.

    The method has a random generator of its own, so that all processes draw the same numbers.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        super().__init__(tasks)
        self.generator = torch.Generator().manual_seed(seed)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # independent of the losses
        drawn = torch.randn(len(self.tasks), generator=self.generator).softmax(0)
        return drawn.to(values, non_blocking=True)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class _Geometric(LossWeighting):
    """Geometric mean of the present losses (Chennupati et al. 2019): relative changes of all losses count equally."""

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:
        values, n = values.clamp(min=_TINY), present.sum().clamp(min=1)
        return ((values.log() * present).sum() / n).exp() / (n * values)


class _Famo(LossWeighting):
    """Fast adaptive multitask optimization (FAMO, Liu et al. 2023): weights that make all losses fall at an equal rate.

    Minimises the sum of z * log(loss), where z is a softmax over learned logits, scaled so that the factors sum to 1.
    Adam (learning rate 0.025, weight decay 0.001) raises the logits of tasks whose log-loss fell less. The fall is
    measured from one batch with the task's label to the next; the paper runs the network twice on the same batch.
    """

    logits: Tensor
    momentum: Tensor
    variance: Tensor
    updates: Tensor
    previous: Tensor

    _LR, _WEIGHT_DECAY, _BETA1, _BETA2 = 0.025, 1e-3, 0.9, 0.999

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self._add_buffers(logits=0.0, momentum=0.0, variance=0.0, updates=0.0, previous=torch.nan)

    def _factors(self, values: Tensor, present: Tensor) -> Tensor:
        log_losses = (values + _TINY).log()
        self._learn(self.previous - log_losses, present * ~self.previous.isnan())
        self.previous.copy_(log_losses.where(present > 0, self.previous))
        shares = self._softmax(present) / (values + _TINY)
        return shares / shares.sum().clamp(min=_TINY)

    def _softmax(self, among: Tensor) -> Tensor:
        shares = (self.logits - self.logits.max()).exp() * among
        return shares / shares.sum().clamp(min=_TINY)

    def _learn(self, falls: Tensor, among: Tensor) -> None:
        """Do one step of Adam on the logits of the tasks ``among``, whose log-losses fell by ``falls``."""
        z, falls = self._softmax(among), falls.nan_to_num()
        gradient = z * (falls - (z * falls).sum()) + self._WEIGHT_DECAY * self.logits
        self.updates.add_(among)
        self.momentum.lerp_(gradient, among * (1 - self._BETA1))
        self.variance.lerp_(gradient**2, among * (1 - self._BETA2))
        momentum = self.momentum / (1 - self._BETA1**self.updates).clamp(min=_TINY)
        variance = self.variance / (1 - self._BETA2**self.updates).clamp(min=_TINY)
        self.logits.sub_(among * self._LR * momentum / (variance.sqrt() + _TINY))


def build_loss_weighting(spec: LossWeightingSpec, tasks: Sequence[Task], *, seed: int = 0) -> LossWeighting:
    """Build the method that ``spec`` names for ``tasks``. Only ``rlw`` uses ``seed``, the same in all processes."""
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
