"""What learns: the network with everything that an optimizer step touches, and that step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.multi_scale import resize
from mtl_cloud.train.data.transforms import apply_color
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.optim.backward import Backward
from mtl_cloud.train.optim.ema import MovingAverage
from mtl_cloud.train.optim.loss_weighting import Weighting
from mtl_cloud.train.optim.optimizer import set_learning_rate
from mtl_cloud.train.tasks.base import LossTerm, TaskHead
from mtl_cloud.train.tasks.losses import forward, loss_terms, sums

__all__ = ["Learner"]


@dataclass
class Learner:
    """One process's replica. Nothing in a step waits for the device, but for gradient weightings."""

    training: TrainingSpec
    group: ProcessGroup
    network: nn.Module
    """The bare network."""
    model: nn.Module
    """What a step calls: the network, or its data-parallel wrapper."""
    heads: dict[Task, TaskHead]
    weighting: Weighting
    backward: Backward
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    average: MovingAverage | None = None
    """Of the network's weights."""

    @property
    def judged(self) -> nn.Module:
        """The network that is validated: the moving average, where there is one."""
        return self.network if self.average is None else self.average.network

    def train_mode(self) -> None:
        self.model.train()
        if self.training.norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # the only common base
                    module.eval()

    def step(self, batch: Batch, *, rate: float, size: int, tasks: Collection[Task] | None) -> Tensor:
        """Learn from this process's share of a batch; returns as ``gradients``."""
        set_learning_rate(self.optimizer, rate)
        losses = self.gradients(batch, size=size, tasks=tasks)
        self._update()
        return losses

    def gradients(self, batch: Batch, *, size: int, tasks: Collection[Task] | None) -> Tensor:
        """Fill the gradients; returns all processes' loss totals and counts, [2, tasks].

        ``size``: pixels of the network's input. ``tasks``: the sub-networks to run; None for all.

        Every process sees the global batch's losses as values, so that stateful weightings agree, while the gradient
        is that of its own samples.
        """
        terms = self._losses(batch.to(self.group.device), size, tasks)
        totals, counts = reduced = self.group.sum(sums(terms))
        # Not stacked: the graph of a stack would connect each loss to all tasks' parameters.
        losses = [
            (term.total + (total - term.total).detach()) / count.clamp(min=1)
            for term, total, count in zip(terms, totals, counts, strict=True)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(losses, counts > 0)
        return reduced

    def _losses(self, batch: Batch, size: int, tasks: Collection[Task] | None) -> Sequence[LossTerm]:
        images = batch.floats()
        if batch.color is not None:
            images = apply_color(images, batch.color)
        images, batch = resize(images, batch, size)
        if self.group.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        return loss_terms(self.heads, forward(self.model, images, self.autocast, tasks), batch)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.training.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "ema": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "weighting": self.weighting.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` gave; other entries are passed over."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.weighting.load_state_dict(state["weighting"])
